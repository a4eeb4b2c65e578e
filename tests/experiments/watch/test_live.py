"""The page of a real run under way: its running row, and the end of a row within ten seconds."""

import hashlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.results.run_folder import RUN_FILE
from tests.experiments.watch.page import open_view, serving
from tests.support.processes.waiting import wait_for
from tests.support.services.chromium import Page, chromium_path

SUITE = "single_gpu_blip2"
ROWS = ("reduced-batch", "reduced-precision")
UPDATE_LIMIT_S = 10.0
RUN_LIMIT_S = 300.0


@pytest.fixture
def running_run(tmp_path):
    """A run of tiny models under way: its folder and its process."""
    rows = [word for row in ROWS for word in ("--row", row)]
    words = ["run", SUITE, *rows, "--size", "tiny", "--no-predict", "--results", str(tmp_path / "results")]
    with subprocess.Popen([sys.executable, "-m", "experiments", *words], stdout=subprocess.DEVNULL) as process:
        wait_for(lambda: list(tmp_path.glob(f"results/*/{RUN_FILE}")))
        yield next(tmp_path.glob(f"results/*/{RUN_FILE}")).parent.resolve(), process
        process.terminate()


def files(folder: Path) -> dict[str, str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def shows_row(row: str, state: str) -> str:
    """Return the condition that the page shows a row with a state."""
    return rf"new RegExp('^ *{row} +{state}', 'm').test(shown())"


@pytest.mark.timeout(900)
def test_the_live_page_of_a_run_in_progress_shows_each_row_and_changes_no_files(running_run, tmp_path):
    folder, process = running_run
    with serving(folder) as address, Page(chromium_path(), tmp_path / "chromium") as page:
        open_view(page, address)
        page.until(shows_row(ROWS[0], "(?!waiting|ran)") + r" && /\d running/.test(shown())", RUN_LIMIT_S)
        for row in ROWS:
            result = folder / SUITE / row / "result.json"
            wait_for(result.exists, RUN_LIMIT_S)
            page.until(shows_row(row, "ran"), UPDATE_LIMIT_S)
        process.wait(RUN_LIMIT_S)
        before = files(folder)
        page.call("Input.insertText", text="dwx\r")
        time.sleep(2)
        assert files(folder) == before
