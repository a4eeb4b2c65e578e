"""The command that predicts and evaluates the stored runs again."""

import json
import shutil
from pathlib import Path

import pytest

from experiments.evidence import renew
from experiments.results.run_folder import RunFolder
from experiments.suites.suite import suite_named
from tests.support.results.evidence import EVIDENCE

NAME = "slurm_hf_trainer-v100_32gb-without-gpu"


@pytest.fixture
def stored_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """Copy a stored run that has an old verdict and only the prediction of one row."""
    shutil.copytree(EVIDENCE / NAME, tmp_path / NAME)
    folder = RunFolder(tmp_path / NAME)
    folder.write_run(folder.read_run().model_copy(update={"rows": ("neo-1gpu",), "started_at": "2026-01-01T00:00:00Z"}))
    monkeypatch.setattr(renew, "EVIDENCE", tmp_path)
    return folder


def test_a_run_of_predictions_is_renewed_with_all_current_rows_of_its_suite(
    stored_run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    predicted: list[tuple[str, ...]] = []
    monkeypatch.setattr(renew, "predict_rows", lambda suite, run, folder, view: predicted.append(run.rows))
    (stored_run.path / "verdict.json").unlink()
    renew.main([NAME])
    run = stored_run.read_run()
    assert run.rows == tuple(row.id for row in suite_named(run.suite).rows_for(run.card)) == predicted[0]
    assert run.started_at > "2026-11"
    written, kept = (
        json.loads((place / NAME / "verdict.json").read_bytes()) for place in (stored_run.path.parent, EVIDENCE)
    )
    assert written["verdicts"] == kept["verdicts"]
    assert capsys.readouterr().out == f"{NAME}: 0 changed verdict(s)\n"


def test_the_error_for_an_unknown_run_lists_the_stored_runs(
    stored_run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        renew.main(["another"])
    assert capsys.readouterr().err.endswith(f"error: unknown run: another; stored: {NAME}\n")


def test_a_run_can_be_renewed_with_its_stored_predictions(
    stored_run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renew, "predict_rows", None)
    before = (stored_run.path / "predictions.json").read_bytes()
    (stored_run.path / "verdict.json").unlink()
    renew.main(["--keep-predictions", NAME])
    assert (stored_run.path / "predictions.json").read_bytes() == before
    assert (stored_run.path / "verdict.json").is_file()
