"""The stored results of GPU runs: a new evaluation gives the stored verdicts."""

from pathlib import Path

import pytest

from experiments.report.write import reevaluate, reevaluate_together
from experiments.results.quantities import LOAD_QUANTITIES, LOSS_QUANTITIES, STEP_QUANTITIES, TIME_QUANTITIES
from experiments.results.run_folder import RunFolder
from experiments.suites.suite import suite_named
from tests.support.results.evidence import EVIDENCE, RUNS

# The README next to them, and a note of the row, explain the known causes.
FAILED_STATEMENTS = {
    "single_gpu_blip2-a100_80gb-full-verdict": ["claim/lora-fits-easily"],
    "single_gpu_blip2-h100_94gb-full-verdict": ["claim/lora-fits-easily"],
    "single_gpu_blip2-a100_80gb-full-as-taught": ["claim/scaled-rate-keeps-the-loss"],
    "single_gpu_litgpt-a100_80gb-full-verdict": [
        "claim/accumulation-keeps-memory",
        "claim/lora-trains-13b-with-minimal-memory",
    ],
    "single_gpu_blip2-a100_80gb-without-gpu": ["claim/lora-fits-easily"],
    "single_gpu_litgpt-a100_80gb-without-gpu": [
        "claim/accumulation-keeps-memory",
        "claim/lora-trains-13b-with-minimal-memory",
    ],
    "single_gpu_blip2-h100_1g_12gb-full-verdict": ["claim/lora-fits-easily"],
    "single_gpu_litgpt-h100_1g_12gb-full-verdict": [
        "claim/accumulation-keeps-memory",
        "claim/lora-trains-13b-with-minimal-memory",
    ],
    "single_gpu_blip2-h100_1g_12gb-without-gpu": ["claim/lora-fits-easily"],
    "single_gpu_litgpt-h100_1g_12gb-without-gpu": [
        "claim/accumulation-keeps-memory",
        "claim/lora-trains-13b-with-minimal-memory",
    ],
    "multi_gpu_litgpt-a100_80gb-without-gpu": [
        "7b-1gpu-acc4/reserved_gib",
        "7b-4gpu-fsdp/reserved_gib",
        "7b-4gpu-fsdp-b8/allocated_after_forward_gib",
    ],
    "multi_gpu_litgpt-v100_32gb-without-gpu": ["3b-4gpu-fsdp/allocated_after_forward_gib"],
    "multi_gpu_litgpt-a100_80gb-full-verdict-2gpus": [
        "7b-1gpu-acc4/reserved_gib",
        "claim/fsdp-larger-batch-is-faster",
    ],
    "multi_gpu_litgpt-a100_80gb-full-verdict": [
        "7b-1gpu-acc4/reserved_gib",
        "7b-4gpu-ddp/outcome",
        "7b-4gpu-fsdp/reserved_gib",
        "7b-4gpu-fsdp-b8/allocated_after_forward_gib",
        "7b-4gpu-fsdp-b8/reserved_gib",
    ],
    "multi_gpu_litgpt-v100_32gb-full-verdict": [
        "1b-4gpu-ddp/allocated_after_forward_gib",
        "1b-4gpu-fsdp/allocated_after_forward_gib",
        "1b-4gpu-fsdp/reserved_gib",
        "3b-4gpu-fsdp/allocated_after_forward_gib",
    ],
}

# Statements about the lab's own sizes, and comparisons with the row that needs a smaller twin than the others.
NOT_OF_TWINS = {
    "single_gpu_blip2-h100_1g_12gb-without-gpu": [
        "claim/other-items-are-small",
        "claim/params-near-14-gb",
        "claim/parameters-of-the-baseline",
        "claim/larger-model-has-6-7-billion",
        "claim/xxl-has-11-billion",
        "claim/offload-lowers-gpu-memory",
        "claim/offload-lowers-the-peak",
        "claim/offload-is-slow",
        "claim/lora-grads-are-tiny",
    ],
    "single_gpu_litgpt-h100_1g_12gb-without-gpu": [
        "claim/parameters-of-1b",
        "claim/parameters-of-3b",
        "claim/parameters-of-7b",
        "claim/parameters-of-13b",
    ],
}

# Allowed errors of predicted peaks, as shares: for unknown reasons, the peak of 7b-qlora is predicted 0.23 GiB too high
PEAK_ERRORS = {"7b-qlora": 0.012}


@pytest.mark.parametrize("folder", RUNS, ids=lambda path: path.name)
def test_evaluating_a_stored_run_again_gives_its_stored_verdicts(folder: Path) -> None:
    (again,) = reevaluate(folder)
    assert again.changes == ()
    assert again.evaluation.count("error") == 0
    failed = [verdict.id for verdict in again.evaluation.verdicts if verdict.status == "fail"]
    assert failed == FAILED_STATEMENTS.get(folder.name, [])


@pytest.mark.parametrize("folder", sorted(EVIDENCE.glob("*-without-gpu")), ids=lambda path: path.name)
def test_without_a_gpu_all_statements_have_a_verdict_except_those_on_times_losses_and_loads(folder: Path) -> None:
    verdicts = reevaluate(folder)[0].evaluation.verdicts
    assert {verdict.grade for verdict in verdicts} <= {"predicted", "miniature", None}
    open_ = [verdict for verdict in verdicts if verdict.status == "not evaluated"]
    suite = suite_named(RunFolder(folder).read_run().suite)
    checks: dict[str, set[str]] = {
        f"claim/{claim.id}": {check.quantity for check in claim.checks} for claim in suite.claims
    }
    scaled = [verdict.id for verdict in open_ if verdict.reason.startswith("scaled to ")]
    assert scaled == NOT_OF_TWINS.get(folder.name, [])
    for verdict in (one for one in open_ if one.id not in scaled):
        quantities = checks.get(verdict.id) or {verdict.id.rpartition("/")[2]}
        assert quantities <= {*TIME_QUANTITIES, *LOSS_QUANTITIES, *LOAD_QUANTITIES, *STEP_QUANTITIES}, verdict.id
        assert any(why in verdict.reason for why in ("not predicted", "too close to call", "no GPU", "the loss"))


def test_without_a_gpu_at_most_12_percent_of_the_statements_have_no_verdict() -> None:
    """Counts the statements of four suites, each on its first card with a stored run without a GPU."""
    cards = {"single_gpu_blip2": "a100_80gb", "single_gpu_litgpt": "a100_80gb", "multi_gpu_litgpt": "a100_80gb"}
    folders = [EVIDENCE / f"{suite}-{card}-without-gpu" for suite, card in cards.items()]
    folders.append(EVIDENCE / "slurm_hf_trainer-v100_32gb-without-gpu")
    verdicts = [verdict for folder in folders for verdict in reevaluate(folder)[0].evaluation.verdicts]
    without = [verdict.id for verdict in verdicts if verdict.status == "not evaluated"]
    assert len(without) <= 0.12 * len(verdicts), without


@pytest.mark.parametrize(
    ("suite", "card"),
    [
        ("single_gpu_blip2", "a100_80gb"),
        ("single_gpu_blip2", "h100_94gb"),
        ("single_gpu_litgpt", "a100_80gb"),
        ("multi_gpu_litgpt", "a100_80gb"),
        ("multi_gpu_litgpt", "v100_32gb"),
    ],
)
def test_every_row_of_a_suite_on_a_card_was_measured_on_a_gpu_at_full_size(suite: str, card: str) -> None:
    results = RunFolder(EVIDENCE / f"{suite}-{card}-full-verdict").results()
    assert list(results) == [row.id for row in suite_named(suite).rows_for(card)]
    assert all(result.spec.size == "full" and result.device.kind == "cuda" for result in results.values())
    assert all(result.device.cap_gib and result.emulated for result in results.values())


def test_each_rank_of_a_row_was_measured_on_its_own_gpu() -> None:
    several = [
        result
        for folder in RUNS
        for result in RunFolder(folder).results().values()
        if result.spec.settings.ranks > 1 and result.outcome == "fits"
    ]
    assert len(several) >= 12
    for result in several:
        assert [rank.rank for rank in result.ranks] == list(range(result.spec.settings.ranks))
        assert all(rank.device.kind == "cuda" and rank.memory.reserved_gib for rank in result.ranks)
        assert result.speed is not None
        assert result.speed.communication_share


def test_every_statement_of_the_single_gpu_labs_has_a_verdict() -> None:
    blip2 = [EVIDENCE / f"single_gpu_blip2-a100_80gb-full-{length}" for length in ("verdict", "as-taught")]
    for evaluation in (
        reevaluate_together(blip2).evaluation,
        reevaluate_together(blip2[::-1]).evaluation,
        reevaluate(EVIDENCE / "single_gpu_litgpt-a100_80gb-full-verdict")[0].evaluation,
    ):
        assert evaluation.count("not evaluated") == 0
        assert evaluation.count("pass") >= len(evaluation.verdicts) - 2


@pytest.mark.parametrize("row", ["reduced-batch", "reduced-precision", "mixed-precision", "xxl-sgd", "xxl-adam-8bit"])
def test_a_run_with_length_verdict_reaches_the_peak_of_a_run_with_length_as_taught(row: str) -> None:
    short, whole = (
        RunFolder(EVIDENCE / f"single_gpu_blip2-a100_80gb-full-{length}").results()[row]
        for length in ("verdict", "as-taught")
    )
    assert short.memory.peak_gib == pytest.approx(whole.memory.peak_gib, rel=0.005)


@pytest.mark.parametrize("folder", sorted(EVIDENCE.glob("*-without-gpu")), ids=lambda path: path.name)
def test_the_stored_predictions_agree_with_the_stored_measurements(folder: Path) -> None:
    """Compares the first rank of each row that fits, on a GPU limited to the card's memory."""
    predicted = {one.spec.row: one for one in RunFolder(folder).predictions()}
    for measured in EVIDENCE.glob(folder.name.replace("without-gpu", "full-verdict*")):
        for row, result in RunFolder(measured).results().items():
            on_gpu = result.outcome == "fits" and result.device.kind == "cuda"
            if not on_gpu or row not in predicted or predicted[row].spec.settings != result.spec.settings:
                continue
            peak_gib = result.ranks[0].memory.peak_gib if result.ranks else result.memory.peak_gib
            if result.spec.settings.compile:  # predicted without compilation, which saves memory
                assert predicted[row].peak_gib >= peak_gib
                continue
            assert predicted[row].peak_gib == pytest.approx(peak_gib, rel=PEAK_ERRORS.get(row, 0.003), abs=0.06), row
