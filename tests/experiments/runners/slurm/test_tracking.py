"""The jobs of a row are marked at the cluster when its results are on this machine. Fake: the rest of the tracker."""

from types import SimpleNamespace
from typing import Any

from experiments.runners.slurm.tracking import JobTracker
from provision.ssh.shell import LocalShell


def test_all_jobs_of_a_fetched_row_are_marked_and_no_others(tmp_path):
    names = ("xxl-aaaaaaaa", "xxl-bbbbbbbb", "xxl-sgd-cccccccc")
    for name in names:
        (tmp_path / ".jobs" / name).mkdir(parents=True)
    tracker: Any = SimpleNamespace(_shell=LocalShell(), _remote=str(tmp_path))
    row: Any = SimpleNamespace(job_spec=SimpleNamespace(folder=".jobs/xxl-aaaaaaaa", attempt="aaaaaaaa"))
    JobTracker._record_fetched(tracker, row)
    assert [(tmp_path / ".jobs" / name / "fetched").exists() for name in names] == [True, True, False]
