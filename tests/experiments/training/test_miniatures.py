"""Memory claims of the text suites on tiny models: rows on one device, trained up to their peak."""

from functools import cache

import pytest

from experiments.results.evaluate import claim_rows, evaluate
from experiments.results.quantities import LOAD_QUANTITIES, TIME_QUANTITIES
from experiments.results.run_folder import Run
from experiments.results.schema import Result
from experiments.suites.row_spec import RowSpec
from experiments.suites.suite import suite_named
from experiments.training import rank
from tests.support.results.in_memory import run

SUITES = ("single_gpu_litgpt", "slurm_hf_trainer")


def run_of_all_rows(suite: str) -> Run:
    made = suite_named(suite)
    rows = tuple(row.id for row in made.rows)
    return run(*rows, suite=suite, card=made.cards[0], size="tiny", length="peak", weights="random", data="synthetic")


def memory_claims():
    """Yield every claim that compares the memory of rows on one device."""
    for suite in map(suite_named, SUITES):
        settings = {row.id: suite.settings(row, suite.cards[0]) for row in suite.rows}
        for claim in suite.claims:
            of_memory = all(check.quantity not in (None, *TIME_QUANTITIES, *LOAD_QUANTITIES) for check in claim.checks)
            if of_memory and not claim.full_size and all(settings[row].ranks == 1 for row in claim_rows(claim)):
                yield pytest.param(suite.suite, claim, id=claim.id)


@pytest.fixture(scope="module")
def train_once(tmp_path_factory):
    """Return the result of a row; each row is trained once."""

    @cache
    def train(suite: str, row: str) -> Result:
        spec: RowSpec = run_of_all_rows(suite).spec(suite_named(suite), row)
        measured = rank.run_rank(spec, tmp_path_factory.mktemp(row))
        return Result(**measured.model_dump(), spec=spec, fingerprint=spec.fingerprint, code="0" * 64)

    return train


@pytest.mark.parametrize(("suite", "claim"), memory_claims())
def test_a_memory_claim_passes_for_tiny_models(train_once, suite, claim):
    results = {row: train_once(suite, row) for row in claim_rows(claim)}
    verdicts = {
        verdict.id: verdict for verdict in evaluate(suite_named(suite), run_of_all_rows(suite), results).verdicts
    }
    verdict = verdicts[f"claim/{claim.id}"]
    assert (verdict.status, verdict.reason) == ("pass", "")
