"""Smaller twins of a suite's rows for smaller cards: their settings, mistakes in them, and their predicted outcomes."""

from copy import deepcopy
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import yaml
from rich.console import Console

from experiments.cli.tables.suites import rows_as_data, rows_table, suites_table
from experiments.errors import InputError
from experiments.prediction.predict import predict, suite_row_spec
from experiments.prediction.service import select_rows
from experiments.prediction.tables import compare_with_lab, prediction_as_data, prediction_tables
from experiments.results.run_folder import RunFolder
from experiments.results.verdicts import Evaluation
from experiments.runners.admission import host_memory_needed_gib
from experiments.suites.schema import SCALED_SETTINGS
from experiments.suites.suite import Suite, read_suite, suite_named, suite_names
from experiments.system.files import cache_folder
from tests.experiments.suites.test_suite import GOOD
from tests.support.results.evidence import EVIDENCE
from tests.support.results.in_memory import CARD

SMALL = "h100_1g_12gb"
SCALE: dict[str, Any] = {"scale": "12gb", "cards": [SMALL], "rows": {"large": {"batch_size": 8}}}
SCALED_LABS = [name for name in suite_names() if suite_named(name).scales]
MARGIN = 0.03
STUDENT_HOST_GIB = 15.0
"""Host memory of one of 28 students on a node of 512 GiB, less what the system takes."""


@pytest.fixture
def read(tmp_path):
    def read_with(*scales: dict[str, Any]) -> Suite:
        path = tmp_path / "lab.yaml"
        path.write_text(yaml.safe_dump({**deepcopy(GOOD), "scales": list(scales)}))
        return read_suite(path)

    return read_with


def test_the_smaller_twin_of_a_row_has_the_settings_of_the_row_except_for_those_of_the_scale(read):
    suite = read(SCALE)
    small, large = suite.rows
    assert suite.settings(large, SMALL).batch_size == 8
    assert suite.settings(large, CARD).batch_size == 64
    assert suite.settings(small, SMALL) == suite.settings(small, CARD)
    assert [row.id for row in suite.rows_for(SMALL)] == ["small", "large"]


def test_only_the_smaller_twin_of_a_row_has_a_note_that_it_is_scaled(read):
    suite = read(SCALE)
    assert suite.twin_note("large", SMALL) == "scaled to 12 GB"
    assert suite.twin_note("small", SMALL) == suite.twin_note("large", CARD) == ""
    assert suite.note_on_scaled_rows(["small", "large"], SMALL) == "1 of 2 rows scaled to 12 GB"
    assert suite.note_on_scaled_rows(["large"], SMALL) == "scaled to 12 GB"
    assert suite.note_on_scaled_rows(["small", "large"], CARD) == ""


def test_a_row_for_a_single_card_has_no_smaller_twin(read):
    suite = read(SCALE)
    only = suite.rows[0].model_copy(update={"cards": (CARD,)})
    assert [row.id for row in suite.model_copy(update={"rows": (only, suite.rows[1])}).rows_for(SMALL)] == ["large"]


BAD = {
    "name": (
        [{**SCALE, "scale": "12 GB"}],
        "lab.yaml: scales.0.scale = '12 GB': allowed: a whole number of GB, such as 12gb",
    ),
    "row": (
        [{**SCALE, "rows": {"huge": {"batch_size": 8}}}],
        "lab.yaml: scale '12gb': unknown row 'huge'; allowed: small, large",
    ),
    "card of two scales": (
        [SCALE, {**SCALE, "scale": "10gb"}],
        f"lab.yaml: scale '10gb': card '{SMALL}' is also a card of scale '12gb'; "
        "list each card once, in the suite or in one scale",
    ),
    "card of the suite": (
        [{**SCALE, "cards": [CARD]}],
        f"lab.yaml: scale '12gb': card '{CARD}' is also a card of the suite; "
        "list each card once, in the suite or in one scale",
    ),
    "two scales of one name": (
        [SCALE, {**SCALE, "cards": ["v100_16gb"]}],
        "lab.yaml: scale '12gb' occurs twice; each scale needs its own name",
    ),
    "setting that the row teaches": (
        [{**SCALE, "rows": {"large": {"precision": "32-true"}}}],
        "lab.yaml: scale '12gb': row 'large': a scale must not change precision; allowed: "
        + ", ".join(SCALED_SETTINGS),
    ),
    "value": (
        [{**SCALE, "rows": {"large": {"batch_size": 0}}}],
        "lab.yaml: row 'large' scaled to 12 GB: batch_size = 0: allowed: a whole number above 0",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_the_error_for_a_mistake_in_a_scale_names_the_allowed_values(read, case):
    scales, message = BAD[case]
    with pytest.raises(InputError) as rejected:
        read(*scales)
    assert str(rejected.value) == message


def test_the_error_for_an_unknown_card_of_a_scale_lists_the_known_cards(read):
    with pytest.raises(InputError, match=r"^lab\.yaml: scale '12gb': unknown card 'h100_1g'; allowed: a100_80gb, "):
        read({**SCALE, "cards": ["h100_1g"]})


def stored(name: str, card: str) -> RunFolder:
    return RunFolder(EVIDENCE / f"{name}-{card}-without-gpu")


TWINS = [pytest.param(name, row.id, id=row.id) for name in SCALED_LABS for row in suite_named(name).rows_for(SMALL)]


@pytest.mark.parametrize(("name", "row"), TWINS)
def test_the_smaller_twin_of_a_row_is_predicted_to_end_as_the_lab_states_with_memory_to_spare(name, row):
    suite = suite_named(name)
    spec = suite_row_spec(suite, suite.row(row), SMALL)
    (prediction,) = (one for one in stored(name, SMALL).predictions() if one.spec.row == row)
    assert prediction.spec == spec, "predict the twin again: python -m experiments.evidence.renew"
    assert prediction.predicted_outcome == suite.row(row).expect.outcome
    assert abs(prediction.margin_gib) > MARGIN * prediction.usable_gib


@pytest.mark.slow
@pytest.mark.skipif(not (find_spec("torch") and which("c++")), reason="needs torch and a C++ compiler")
@pytest.mark.parametrize("row", ["tiny-reduced-batch", "13b-adamw"])
def test_the_stored_prediction_of_a_row_s_smaller_twin_is_that_of_the_current_code(row):
    suite = suite_named("single_gpu_litgpt")
    (found,) = predict([suite_row_spec(suite, suite.row(row), SMALL)], cache_folder())
    (before,) = (one for one in stored(suite.suite, SMALL).predictions() if one.spec.row == row)
    assert found.peak_gib == pytest.approx(before.peak_gib, rel=0.001)


@pytest.mark.parametrize(("name", "row"), TWINS)
def test_the_smaller_twin_of_a_row_needs_no_more_host_memory_than_a_student_has(name, row):
    suite = suite_named(name)
    assert host_memory_needed_gib(suite_row_spec(suite, suite.row(row), SMALL)) <= STUDENT_HOST_GIB


def test_the_host_memory_for_the_smaller_twin_of_a_row_with_offload_is_checked():
    suite = suite_named("single_gpu_blip2")
    assert any(suite_row_spec(suite, row, SMALL).settings.uses_host_memory for row in suite.rows_for(SMALL))


def test_a_row_and_its_smaller_twin_have_different_fingerprints():
    for name in SCALED_LABS:
        suite = suite_named(name)
        for row in suite.rows_for(SMALL):
            taught, twin = (suite_row_spec(suite, row, card) for card in (suite.cards[0], SMALL))
            assert twin.settings != taught.settings
            assert twin.model_copy(update={"card": taught.card}).fingerprint != taught.fingerprint


def test_the_tutorial_states_how_many_predicted_verdicts_are_the_same_for_rows_and_smaller_twins():
    alike = total = 0
    for name in SCALED_LABS:
        taught, twins = (
            {one.id: one.status for one in _verdicts(name, card)} for card in (suite_named(name).cards[0], SMALL)
        )
        decided = [one for one in taught if {taught[one], twins[one]} <= {"pass", "fail"}]
        assert [one for one in decided if taught[one] != twins[one]] == []
        alike, total = alike + len(decided), total + len(taught)
    assert alike >= 70
    tutorial = (Path(__file__).parents[3] / "docs" / "tutorials" / "course-staff.md").read_text()
    assert f"{alike} of the {total} statements" in " ".join(tutorial.split())


def _verdicts(name: str, card: str) -> Any:
    path = stored(name, card).path / "verdict.json"
    return Evaluation.model_validate_json(path.read_bytes()).verdicts


@pytest.mark.skipif(not find_spec("transformers"), reason="needs transformers")
@pytest.mark.parametrize(
    ("name", "model"), [(name, model) for name in SCALED_LABS for model in suite_named(name).models]
)
def test_the_model_of_a_smaller_twin_has_the_stated_number_of_parameters(name, model):
    from experiments.training.models.weights import meta_model

    facts = suite_named(name).models[model]
    assert sum(one.numel() for one in meta_model(facts, "full").parameters()) == facts.parameters


def test_the_terminal_says_that_rows_are_scaled():
    name = "single_gpu_litgpt"
    shown = Console(width=200, record=True, file=StringIO())
    shown.print(rows_table(name, SMALL), prediction_tables(stored(name, SMALL).predictions()), suites_table())
    text = shown.export_text()
    assert f"on {SMALL}, scaled to 12 GB" in text
    assert "GiB usable, scaled to 12 GB" in text
    assert f"{SMALL} (scaled to 12 GB)" in text
    assert {row["scaled"] for row in rows_as_data(name, SMALL)} == {"scaled to 12 GB"}
    assert {row["scaled"] for row in rows_as_data(name, CARD)} == {""}


def test_rows_are_predicted_for_the_card_of_the_lab_unless_a_smaller_card_is_requested():
    assert {spec.card for spec in select_rows("single_gpu_litgpt", None)} == {CARD}
    assert {spec.card for spec in select_rows("single_gpu_litgpt", SMALL)} == {SMALL}
    assert {spec.suite for spec in select_rows(None, SMALL)} == set(SCALED_LABS)


def test_the_prediction_of_a_smaller_twin_states_the_size_to_which_its_row_is_scaled():
    prediction = stored("single_gpu_litgpt", SMALL).predictions()[0]
    assert compare_with_lab(prediction) == "out of GPU memory, as the lab states (scaled to 12 GB)"
    assert prediction_as_data(prediction)["scaled"] == "scaled to 12 GB"
