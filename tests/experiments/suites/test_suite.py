from copy import deepcopy
from typing import Any, get_args

import pytest
import yaml

from experiments.errors import InputError
from experiments.suites.cards import cards
from experiments.suites.choices import Optimizer, Strategy
from experiments.suites.models import models
from experiments.suites.settings import Settings
from experiments.suites.suite import Check, Quantity, ReferenceValue, Row, Suite, read_suite, suite_named, suite_names
from tests.support.results.in_memory import CARD, COMMON

GOOD: dict[str, Any] = {
    "suite": "lab",
    "version": 1,
    "title": "Lab",
    "source": "made up",
    "cards": [CARD, "h100_94gb"],
    "common": COMMON,
    "rows": [
        {"id": "small", "title": "Small", "settings": {"batch_size": 2}, "expect": {"outcome": "fits"}},
        {
            "id": "large",
            "title": "Large",
            "settings": {"batch_size": 64},
            "per_card": {"h100_94gb": {"batch_size": 128}},
            "expect": {"outcome": "oom"},
        },
    ],
    "claims": [
        {
            "id": "more",
            "says": "More is more.",
            "checks": [{"row": "large", "quantity": "peak_gib", "over_row": "small", "low": 1.0}],
        }
    ],
}


def good_suite_with(path, value):
    """GOOD with the value at ``path``, a sequence of keys, changed."""
    data = deepcopy(GOOD)
    *parents, last = path
    inner: Any = data
    for key in parents:
        inner = inner[key]
    inner[last] = value
    return data


@pytest.fixture
def read_edited(tmp_path):
    def read(data):
        path = tmp_path / "lab.yaml"
        path.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
        return read_suite(path)

    return read


def test_the_settings_of_a_row_are_merged_from_common_row_and_card_settings(read_edited):
    suite = read_edited(GOOD)
    large = suite.row("large")
    assert suite.settings(large, CARD).batch_size == 64
    assert suite.settings(large, "h100_94gb").batch_size == 128
    assert suite.settings(large, CARD).lr == COMMON["lr"]


def test_the_validated_settings_of_a_row_are_cached(read_edited):
    suite = read_edited(GOOD)
    large = suite.row("large")
    assert suite.settings(large, CARD) is suite.settings(large, CARD)
    assert suite.settings(large, "h100_94gb") is not suite.settings(large, CARD)
    changed = large.model_copy(update={"settings": {"batch_size": 8}})
    assert suite.settings(changed, CARD).batch_size == 8


def test_a_row_for_some_cards_is_not_among_the_rows_of_other_cards(read_edited):
    suite = read_edited(good_suite_with(("rows", 1, "cards"), [CARD]) | {"cards": [CARD, "h100_94gb"]} | {"claims": []})
    assert [row.id for row in suite.rows_for(CARD)] == ["small", "large"]
    assert [row.id for row in suite.rows_for("h100_94gb")] == ["small"]


SETTINGS = ", ".join(sorted(Settings.model_fields))
BAD = {
    "key of a row's settings": (
        ("rows", 0, "settings", "batchsize"),
        4,
        f"lab.yaml: row 'small' on a100_80gb: unknown key 'batchsize'; allowed: {SETTINGS}",
    ),
    "key of a card's settings": (
        ("rows", 1, "per_card", "h100_94gb", "worker"),
        4,
        f"lab.yaml: row 'large' on h100_94gb: unknown key 'worker'; allowed: {SETTINGS}",
    ),
    "key of the common settings": (
        ("common", "learning_rate"),
        1.0,
        f"lab.yaml: row 'small' on a100_80gb: unknown key 'learning_rate'; allowed: {SETTINGS}",
    ),
    "key of a row": (
        ("rows", 0, "titel"),
        "Small",
        f"lab.yaml: row 'small': unknown key 'titel'; allowed: {', '.join(sorted(Row.model_fields))}",
    ),
    "key of an expectation": (
        ("rows", 0, "expect", "outcom"),
        "fits",
        "lab.yaml: row 'small': unknown key 'expect.outcom'; allowed: outcome, reference_values",
    ),
    "key of a suite": (
        ("card",),
        [CARD],
        f"lab.yaml: unknown key 'card'; allowed: {', '.join(sorted(Suite.model_fields))}",
    ),
    "key of a check": (
        ("claims", 0, "checks", 0, "above"),
        1.0,
        f"lab.yaml: claim 'more': unknown key 'checks.0.above'; allowed: {', '.join(sorted(Check.model_fields))}",
    ),
    "negative batch": (
        ("rows", 0, "settings", "batch_size"),
        -4,
        "lab.yaml: row 'small' on a100_80gb: batch_size = -4: allowed: a whole number above 0",
    ),
    "batch that is not a number": (
        ("rows", 0, "settings", "batch_size"),
        "many",
        "lab.yaml: row 'small' on a100_80gb: batch_size = 'many': allowed: a whole number above 0",
    ),
    "batch that is a truth": (
        ("rows", 0, "settings", "batch_size"),
        True,
        "lab.yaml: row 'small' on a100_80gb: batch_size = True: allowed: a whole number above 0",
    ),
    "devices that are words": (
        ("rows", 0, "settings", "devices"),
        "two",
        "lab.yaml: row 'small' on a100_80gb: devices = 'two': allowed: a whole number above 0",
    ),
    "no devices at all": (
        ("rows", 0, "settings"),
        {"batch_size": 2, "global_batch_size": 2, "devices": 0},
        "lab.yaml: row 'small' on a100_80gb: devices = 0: allowed: a whole number above 0",
    ),
    "no batch at all": (
        ("rows", 0, "settings"),
        {"accumulate": 2},
        "lab.yaml: row 'small' on a100_80gb: the row needs batch_size or global_batch_size",
    ),
    "claims that are not a list": (("claims",), 3, "lab.yaml: claims = 3: allowed: a valid tuple"),
    "global batch that accumulation cannot divide": (
        ("rows", 0, "settings"),
        {"global_batch_size": 10, "accumulate": 4},
        "lab.yaml: row 'small' on a100_80gb: global_batch_size = 10: "
        "cannot be divided by accumulate 4 on 1 device; allowed: multiples of 4",
    ),
    "global batch that the devices cannot divide": (
        ("rows", 0, "settings"),
        {"global_batch_size": 10, "batch_size": 2, "devices": 2, "nodes": 2},
        "lab.yaml: row 'small' on a100_80gb: global_batch_size = 10: "
        "cannot be divided by batch_size 2 on 4 devices; allowed: multiples of 8",
    ),
    "global batch that is another": (
        ("rows", 0, "settings"),
        {"global_batch_size": 16, "batch_size": 2, "accumulate": 4},
        "lab.yaml: row 'small' on a100_80gb: global_batch_size = 16: must be batch_size 2 x accumulate 4 x 1 device",
    ),
    "model": (
        ("rows", 0, "settings", "model"),
        "blip3",
        "lab.yaml: row 'small' on a100_80gb: unknown model 'blip3'; allowed: " + ", ".join(models()),
    ),
    "optimizer": (
        ("rows", 0, "settings", "optimizer"),
        "adam",
        "lab.yaml: row 'small' on a100_80gb: optimizer = 'adam': allowed: "
        + " or ".join(", ".join(map(repr, get_args(Optimizer))).rsplit(", ", 1)),
    ),
    "strategy": (
        ("rows", 0, "settings", "strategy"),
        "dp",
        "lab.yaml: row 'small' on a100_80gb: strategy = 'dp': allowed: "
        + " or ".join(", ".join(map(repr, get_args(Strategy))).rsplit(", ", 1)),
    ),
    "card of the suite": (
        ("cards", 1),
        "h100",
        f"lab.yaml: unknown card 'h100'; allowed: {', '.join(cards())}; did you mean "
        "h100_94gb or h100_80gb or h100_pcie_80gb or h100_1g_12gb?",
    ),
    "size as a card of the suite": (
        ("cards", 1),
        "24GiB",
        f"lab.yaml: unknown card '24GiB'; allowed: {', '.join(cards())}",
    ),
    "card of a row": (
        ("rows", 0, "cards"),
        ["v100_32gb"],
        "lab.yaml: row 'small': unknown card 'v100_32gb'; allowed: a100_80gb, h100_94gb",
    ),
    "card with settings of its own": (
        ("rows", 0, "per_card"),
        {"v100_32gb": {}},
        "lab.yaml: row 'small': unknown card 'v100_32gb'; allowed: a100_80gb, h100_94gb",
    ),
    "row of a claim": (
        ("claims", 0, "checks", 0, "row"),
        "huge",
        "lab.yaml: claim 'more': unknown row 'huge'; allowed: small, large",
    ),
    "row that a claim compares with": (
        ("claims", 0, "checks", 0, "over_row"),
        "tiny",
        "lab.yaml: claim 'more': unknown row 'tiny'; allowed: small, large",
    ),
    "quantity of a claim": (
        ("claims", 0, "checks", 0, "quantity"),
        "peak_gb",
        "lab.yaml: claim 'more': checks.0.quantity = 'peak_gb': allowed: "
        + " or ".join(", ".join(map(repr, get_args(Quantity))).rsplit(", ", 1)),
    ),
    "check without bounds": (
        ("claims", 0, "checks", 0),
        {"row": "small", "quantity": "peak_gib"},
        "a check of peak_gib needs low, high or both",
    ),
    "check of nothing": (
        ("claims", 0, "checks", 0),
        {"row": "small", "low": 1.0},
        "a check states either quantity or outcome",
    ),
    "twin rows": (("rows", 1, "id"), "small", "lab.yaml: row 'small' occurs twice; each row needs its own id"),
    "name that is not the file's": (
        ("suite",),
        "other",
        "lab.yaml: suite = 'other': must be the file's name, 'lab'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_an_error_is_reported_in_one_line_with_its_place_its_value_and_the_allowed_values(read_edited, case):
    path, value, message = BAD[case]
    with pytest.raises(InputError) as rejected:
        read_edited(good_suite_with(path, value))
    text = str(rejected.value)
    assert "\n" not in text
    assert text == message or (text.startswith("lab.yaml: claim 'more': checks.0 = ") and text.endswith(message))


def test_a_missing_key_is_named(read_edited):
    data = deepcopy(GOOD)
    del data["title"]
    with pytest.raises(InputError, match=r"^lab\.yaml: key 'title' is missing$"):
        read_edited(data)


def test_a_missing_setting_is_named(read_edited):
    data = deepcopy(GOOD)
    data["common"] = {key: value for key, value in COMMON.items() if key != "lr"}
    with pytest.raises(InputError, match=r"^lab\.yaml: row 'small' on a100_80gb: key 'lr' is missing$"):
        read_edited(data)


def test_two_claims_with_the_same_id_are_rejected(read_edited):
    with pytest.raises(InputError, match=r"^lab\.yaml: claim 'more' occurs twice; each claim needs its own id$"):
        read_edited({**GOOD, "claims": GOOD["claims"] * 2})


def test_an_invalid_row_id_is_rejected(read_edited):
    with pytest.raises(InputError, match=r"^lab\.yaml: row 'Small_Row': id = 'Small_Row': String should match"):
        read_edited(good_suite_with(("rows", 0, "id"), "Small_Row"))


def test_invalid_yaml_is_rejected(read_edited):
    with pytest.raises(InputError, match=r"lab\.yaml: not valid YAML \(.*line 2.*\)$") as rejected:
        read_edited("suite: lab\nrows: [")
    assert "\n" not in str(rejected.value)


@pytest.mark.parametrize("text", ["", "just words", "suite: lab", "rows: 3"])
def test_yaml_without_a_suite_is_rejected(read_edited, text):
    with pytest.raises(InputError, match=r"^lab\.yaml: a suite needs the keys suite, version, title"):
        read_edited(text)


def test_a_missing_file_is_rejected(tmp_path):
    with pytest.raises(InputError, match=r"absent\.yaml: cannot be read \(No such file or directory\)$"):
        read_suite(tmp_path / "absent.yaml")


def test_the_error_for_an_unknown_suite_row_or_card_lists_the_known_ones():
    suite = suite_named("single_gpu_blip2")
    rows = ", ".join(row.id for row in suite.rows)
    for ask, message in (
        (lambda: suite_named("lab"), f"unknown suite 'lab'; allowed: {', '.join(suite_names())}"),
        (
            lambda: suite.row("base"),
            f"suite single_gpu_blip2: unknown row 'base'; allowed: {rows}; did you mean baseline?",
        ),
        (
            lambda: suite.rows_for("v100_32gb"),
            "suite single_gpu_blip2: unknown card 'v100_32gb'; allowed: a100_80gb, h100_94gb, h100_1g_12gb",
        ),
    ):
        with pytest.raises(InputError) as rejected:
            ask()
        assert str(rejected.value) == message


@pytest.mark.parametrize("key", ["reference_values", "figures"])
def test_reference_values_under_the_current_or_the_earlier_key_are_read(read_edited, key):
    value = {"quantity": "reserved_gib", "low": 50.0, "high": 60.0, "source": "made up"}
    (found,) = read_edited(good_suite_with(("rows", 0, "expect", key), [value])).row("small").expect.reference_values
    assert (found.quantity, found.low, found.high) == ("reserved_gib", 50.0, 60.0)


def test_a_reference_value_is_widened_by_its_tolerance():
    reference = ReferenceValue(quantity="reserved_gib", low=50, high=60, tolerance=0.1, source="made up")
    check = reference.as_check("small")
    assert (check.row, check.quantity) == ("small", "reserved_gib")
    assert (check.low, check.high) == pytest.approx((45, 66))
