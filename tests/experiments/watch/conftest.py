"""The folder of a run that is in progress."""

import shutil

import pytest

from experiments.results.schema import Progress
from tests.support.results.handwritten import H200, h200_run, make_memory, telemetry_csv, with_predictions

RUNNING, STARTING, WAITING = "xxl-sgd", "xxl-adam-8bit", "xxl"


@pytest.fixture
def folder(tmp_path):
    """Create a run with one row that trains, one that starts and one that waits; the others have ended."""
    folder = with_predictions(h200_run(tmp_path / "run"))
    for row in (RUNNING, STARTING, WAITING):
        shutil.rmtree(folder.row_folder_named(row))
    for row in (RUNNING, STARTING):
        folder.row_folder_named(row).mkdir()
        (folder.row_folder_named(row) / "spec.json").write_text("{}")
    progress = Progress(
        phase="backward",
        step=1,
        micro_steps=3,
        planned_micro_steps=10,
        allocated_gib=40.0,
        memory=make_memory(64.6, 65.6, 23, 23, 0, 16),
        device=H200,
        left_s=90.0,
    )
    (folder.row_folder_named(RUNNING) / "progress.json").write_text(progress.model_dump_json())
    (folder.row_folder_named(RUNNING) / "telemetry.csv").write_text(telemetry_csv(1))
    (folder.row_folder_named(RUNNING) / "log.txt").write_bytes(b"step 1\n\x1b[31mstep\x1b[0m 2\n\x07")
    return folder
