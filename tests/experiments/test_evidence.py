"""The kept results of GPU runs: judged anew, they give the verdicts that were kept with them."""

from pathlib import Path

import pytest

import experiments
from experiments.recipe import suite_named
from experiments.report import rejudge
from experiments.run import RunFolder

EVIDENCE = Path(experiments.__file__).parent / "evidence"
RUNS = sorted(path.parent for path in EVIDENCE.glob("*/run.json"))


@pytest.mark.parametrize("folder", RUNS, ids=lambda path: path.name)
def test_judged_anew_the_verdicts_are_the_kept_ones(folder: Path) -> None:
    (again,) = rejudge(folder)
    assert again.changes == ()
    assert again.judgement.exit_code == 0


@pytest.mark.parametrize("card", ["a100_80gb", "h100_94gb"])
def test_every_row_of_the_card_was_measured_on_a_gpu_at_full_size(card: str) -> None:
    results = RunFolder(EVIDENCE / f"single_gpu_blip2-{card}-full-verdict").results()
    assert list(results) == [row.id for row in suite_named("single_gpu_blip2").rows_for(card)]
    assert all(result.spec.size == "full" and result.device.kind == "cuda" for result in results.values())
    assert all(result.device.cap_gib and result.stands_in for result in results.values())


@pytest.mark.parametrize("row", ["reduced-precision", "mixed-precision", "xxl-sgd"])
def test_a_verdict_meets_the_peak_of_the_training_as_taught(row: str) -> None:
    short, whole = (
        RunFolder(EVIDENCE / f"single_gpu_blip2-a100_80gb-full-{length}").results()[row]
        for length in ("verdict", "as-taught")
    )
    assert short.memory.peak_gib == pytest.approx(whole.memory.peak_gib, rel=0.005)
