"""The notebook of a row, with a real kernel and a fake for the trainer."""

import os

import pytest

from experiments.results.schema import NOTEBOOK_FILE, RESULT_FILE, SPEC_FILE
from experiments.runners.local import row_process
from experiments.runners.local.row_notebook import execute
from experiments.runners.local.warm_kernel import WarmKernelManager
from experiments.system.processes import find_tagged
from tests.support.runners import fake_worker
from tests.support.runners import rows as sample_rows

pytestmark = pytest.mark.xdist_group("runner")


@pytest.mark.parametrize(("outcome", "code"), [("fits", 0), ("oom", 1)])
def test_the_notebook_s_kernel_is_killed_at_once_and_not_asked_to_end(tmp_path, monkeypatch, outcome, code):
    at_once: list[bool] = []
    shut_down = WarmKernelManager.shutdown_kernel

    async def note(manager, now=False, restart=False):
        at_once.append(now)
        await shut_down(manager, now=now, restart=restart)

    monkeypatch.setattr(WarmKernelManager, "shutdown_kernel", note)
    monkeypatch.setenv(row_process.ROW_VARIABLE, str(tmp_path))
    monkeypatch.setenv(row_process.WORKER_VARIABLE, fake_worker.MODULE)
    monkeypatch.setenv("FAKE", f"a={outcome}")
    monkeypatch.setenv("PYTHONPATH", row_process.environment_of_child_processes()["PYTHONPATH"])
    (tmp_path / SPEC_FILE).write_text(sample_rows.spec("a", size="tiny").model_dump_json())
    assert (execute(tmp_path), at_once) == (code, [True])
    assert (tmp_path / RESULT_FILE).exists()
    text = (tmp_path / NOTEBOOK_FILE).read_text()
    assert f"a behaves: {outcome}" in text
    assert ("out of GPU memory: fake worker: oom" in text) == bool(code)
    alive = find_tagged(row_process.ROW_VARIABLE, str(tmp_path))
    assert [process for process in alive if process.pid != os.getpid()] == []
