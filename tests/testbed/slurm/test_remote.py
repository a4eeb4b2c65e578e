"""Rows as jobs of a real Slurm, over a real sshd, with a stand-in for the trainer."""

import pytest

from experiments.launch.cluster import Cluster
from experiments.launch.remote import NOTE_FILE, RemoteRunner
from experiments.result import NOTEBOOK_FILE, RESULT_FILE
from tests.experiments.launch import house, standin_worker
from tests.experiments.launch.test_local import Watched
from tests.testbed.slurm.conftest import profile_of

BEHAVIOUR = {"a": "oom", "b": "child", "c": "silent", "d": "garbled", "e": "die"}


@pytest.fixture
def standin(cluster, shell, tmp_path):
    """A runner of rows that behave as told."""

    def make(rows: str, behaviour: dict[str, str], run_id: str = "run", **options):
        journal = cluster.home / "journal"
        told = ",".join(f"{row}={how}" for row, how in behaviour.items())
        profile = profile_of(cluster, STANDIN=told, STANDIN_JOURNAL=str(journal))
        folder = house.folder(tmp_path / run_id, *rows, run_id=run_id)
        view = Watched()
        runner = RemoteRunner(folder, Cluster(shell, profile), view, standin_worker.MODULE, **options)
        return runner, folder, view

    return make


def test_every_row_ends_with_a_result(standin):
    runner, folder, _ = standin("abcdef", BEHAVIOUR)
    runner.run(house.to_run(*(house.spec(row, size="tiny") for row in "abcdef")))
    outcomes = {row: result.outcome for row, result in folder.results().items()}
    assert outcomes == {"a": "oom", "b": "fits", "c": "error", "d": "error", "e": "error", "f": "fits"}
    assert folder.results()["c"].reason == "ended without a result: last line of c"
    assert (folder.row("f") / NOTEBOOK_FILE).exists()
    assert not (folder.row("f") / NOTE_FILE).exists()
    assert (folder.row("f") / RESULT_FILE).exists()
