"""Every suite in the labs folder is complete and can be evaluated."""

import pytest

from experiments.results.quantities import QUANTITIES
from experiments.suites.cards import card_named
from experiments.suites.models import models
from experiments.suites.settings import Settings
from experiments.suites.suite import suite_named, suite_names
from experiments.suites.yaml_schema import LABS

SUITES = [suite_named(name) for name in suite_names()]
CLAIMS = [pytest.param(suite, claim, id=f"{suite.suite}-{claim.id}") for suite in SUITES for claim in suite.claims]
ROWS = [pytest.param(suite, row, id=f"{suite.suite}-{row.id}") for suite in SUITES for row in suite.rows]


def test_every_yaml_file_in_the_folder_of_labs_is_a_suite():
    files = {path.stem for path in LABS.iterdir() if path.suffix in (".yaml", ".yml")}
    assert files == {suite.suite for suite in SUITES}


@pytest.mark.parametrize(("suite", "row"), ROWS)
def test_every_row_has_valid_settings_on_each_of_its_cards(suite, row):
    for card in row.cards or suite.cards:
        settings = suite.settings(row, card)
        assert isinstance(settings, Settings)
        assert card_named(card)
        assert settings.ranks == 1 or settings.strategy != "auto", "several ranks need a strategy"
        trained = settings.quantization and settings.task == "train"
        assert not trained or settings.lora, "quantized weights cannot be trained themselves"


@pytest.mark.parametrize(("suite", "row"), ROWS)
def test_every_row_has_an_expected_outcome(suite, row):
    assert row.expect.outcome
    assert len(row.title) < 60
    assert not row.expect.reference_values or row.expect.outcome == "fits", (
        "a row that does not fit has no reference values"
    )
    assert all(value.low <= value.high and value.source for value in row.expect.reference_values)


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.suite)
def test_every_card_of_a_suite_has_rows(suite):
    assert all(suite.rows_for(card) for card in suite.cards)
    assert len({row.title for row in suite.rows}) == len(suite.rows)


@pytest.mark.parametrize(("suite", "claim"), CLAIMS)
def test_all_rows_of_a_claim_exist_on_at_least_one_card(suite, claim):
    names = {name for check in claim.checks for name in (check.row, check.over_row) if name}
    assert any(names <= {row.id for row in suite.rows_for(card)} for card in suite.cards)
    for check in claim.checks:
        assert check.quantity is None or check.quantity in QUANTITIES
        assert check.low is None or check.high is None or check.low <= check.high
        expected = suite.row(check.row).expect.outcome
        assert check.outcome is None or check.outcome == expected, "claim and row state different outcomes"


def test_rows_use_every_model_of_the_catalog_except_flan_t5_xl():
    used = {
        suite.settings(row, card).model for suite in SUITES for row in suite.rows for card in row.cards or suite.cards
    }
    assert set(models()) - used == {"blip2-flan-t5-xl"}, "no row has it"
