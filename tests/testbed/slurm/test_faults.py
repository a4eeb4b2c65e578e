"""Faults of the connection and of the cluster."""

import os
import signal
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest

from experiments.errors import InputError
from experiments.results.schema import RESULT_FILE
from experiments.runners.slurm.submission import SUBMISSION_FILE
from provision.errors import CommandFailed
from tests.support.processes.waiting import wait_for
from tests.support.runners.rows import rows_to_run, spec
from tests.testbed.slurm.conftest import SMALL
from tests.testbed.slurm.runs import DropsAfterSubmit, SlurmHarness, call_when


@pytest.fixture
def harness(cluster, tmp_path):
    made = SlurmHarness(tmp_path, cluster)
    yield made
    made.close()
    wait_for(lambda: not made.queue())


def test_a_job_whose_submission_got_no_response_is_not_submitted_twice(cluster, tmp_path):
    harness = SlurmHarness(tmp_path, cluster, DropsAfterSubmit(cluster.login()))
    harness.run("a")
    assert harness.outcomes() == {"a": "fits"}
    assert harness.start_count("a") == 1
    harness.close()


def test_a_job_whose_record_is_lost_is_found_by_its_name(harness):
    first = call_when(lambda: harness.start_count("a"), lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Exception, match="SIGTERM"):
        harness.run("a", a="slow")
    first.join()
    (harness.folder.row_folder_named("a") / SUBMISSION_FILE).unlink()
    harness.run("a")
    assert harness.outcomes() == {"a": "fits"}
    assert harness.start_count("a") == 1


def test_results_of_a_job_that_ended_unobserved_are_downloaded(harness):
    first = call_when(lambda: harness.start_count("a"), lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Exception, match="SIGTERM"):
        harness.run("a", a="slow")
    first.join()
    wait_for(lambda: not harness.queue())
    harness.run("a")
    assert harness.outcomes() == {"a": "fits"}
    assert harness.start_count("a") == 1


def test_a_job_with_other_settings_is_cancelled_before_the_row_starts_again(harness):
    first = call_when(lambda: harness.start_count("a"), lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Exception, match="SIGTERM"):
        harness.run("a", a="hang")
    first.join()
    harness.run("a", limit_s=61)
    assert harness.outcomes() == {"a": "fits"}
    assert harness.start_count("a") == 2


def test_a_row_whose_job_somebody_cancels_is_an_error_with_this_reason(harness):
    call_when(lambda: harness.start_count("a"), lambda: harness.cluster.query("scancel", harness.queue()["a"]))
    harness.run("a", a="hang")
    (result,) = harness.folder.results().values()
    assert result.outcome == "error"
    assert "CANCELLED" in result.reason
    assert result.failure.phase == "backward"
    wait_for(lambda: not harness.running_processes(), 15)


def test_a_row_whose_node_fails_is_an_error_with_this_reason(harness):
    lost = harness.cluster.nodes[0]
    killing = call_when(lambda: harness.start_count("a"), lambda: harness.cluster.kill_node(lost))
    harness.run("a", a="hang")
    killing.join()
    harness.cluster.start_node(lost)
    (result,) = harness.folder.results().values()
    assert result.outcome == "error"
    assert "NODE_FAIL" in result.reason
    wait_for(lambda: harness.cluster.states() == ["idle"] * 2, 60)


def test_a_row_that_cannot_finish_before_the_lease_ends_is_not_started(harness):
    end = datetime.now(UTC) + timedelta(minutes=14)
    harness.options = {"ends_at": lambda: end}
    harness.run("a", limit_s=60)
    assert harness.outcomes() == {"a": "fits"}
    harness.run("b", limit_s=300)
    assert harness.outcomes() == {"a": "fits"}
    assert "b: not started, it may not finish before the lease ends" in harness.view.lines


def test_before_the_lease_ends_results_are_downloaded_and_unfinished_jobs_are_cancelled(harness):
    clock = [datetime.now(UTC)]
    end = clock[0] + timedelta(hours=3)
    harness.options = {"ends_at": lambda: end, "now": lambda: clock[0]}

    def later() -> None:
        clock[0] += timedelta(hours=2, minutes=51)

    call_when(lambda: harness.start_count("b") and (harness.folder.row_folder_named("a") / RESULT_FILE).exists(), later)
    harness.run("ab", b="hang")
    assert harness.outcomes() == {"a": "fits"}
    assert "b: cancelled, the lease ends" in harness.view.lines
    assert "last line of b" in (harness.folder.row_folder_named("b") / "log.txt").read_text()
    wait_for(lambda: not harness.queue())


def test_a_run_uses_the_added_time_if_anybody_extends_its_lease(harness):
    clock = [datetime.now(UTC)]
    end = [clock[0] + timedelta(hours=3)]
    harness.options = {"ends_at": lambda: end[0], "now": lambda: clock[0]}

    def extended() -> None:
        end[0] += timedelta(hours=2)
        clock[0] += timedelta(hours=2, minutes=51)

    call_when(lambda: harness.start_count("a"), extended)
    harness.run("a", a="slow")
    assert harness.outcomes() == {"a": "fits"}
    assert not any("the lease ends" in line for line in harness.view.lines)


def test_a_run_does_not_wait_for_nodes_whose_lease_has_ended(harness):
    harness.options = {"is_leased": lambda: False}
    stopping = call_when(lambda: harness.start_count("a"), harness.cluster.sshd.stop)
    try:
        harness.run("a", a="hang")
    finally:
        stopping.join()
        harness.cluster.sshd.start()
    assert harness.outcomes() == {}
    assert "a: not finished, the lease is over or was deleted" in harness.view.lines


def test_a_row_whose_job_lacks_the_gpu_that_the_profile_states_is_rejected(harness):
    harness.runner({}).run(rows_to_run(spec("a", size="full", weights="random")))
    (result,) = harness.folder.results().values()
    assert (result.outcome, result.reason) == ("rejected", "no GPU: full size needs one; size tiny runs anywhere")
    assert harness.start_count("a") == 0


def test_a_profile_that_slurm_rejects_is_an_error_in_one_line(cluster, tmp_path):
    harness = SlurmHarness(tmp_path, cluster, partition="nowhere")
    with pytest.raises(InputError, match=r"row a: .*Invalid partition name specified"):
        harness.run("a")
    harness.close()


def test_a_missing_python_is_an_error_in_one_line(cluster, tmp_path):
    harness = SlurmHarness(tmp_path, cluster, environment="/nowhere")
    with pytest.raises(InputError, match=r"profile testbed: venv /nowhere: its Python cannot run rows: .*No such file"):
        harness.run("a")
    harness.close()


class FullDiskRun:
    """A run in a folder on the cluster whose file system ``fill`` fills."""

    def __init__(self, cluster, path) -> None:
        self.place = cluster.state / SMALL
        if not os.path.ismount(self.place):
            pytest.skip("may not mount a small file system")
        self.harness = SlurmHarness(path, cluster, folder=str(self.place / path.name))

    def fill(self) -> None:
        with suppress(OSError), (self.place / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(1 << 16))

    def clear(self) -> None:
        self.harness.close()
        wait_for(lambda: not self.harness.queue())
        (self.place / "filler").unlink(missing_ok=True)


@pytest.fixture
def full_disk_run(cluster, tmp_path):
    made = FullDiskRun(cluster, tmp_path)
    yield made
    made.clear()


def test_too_little_disk_space_is_reported_before_any_submission(full_disk_run):
    full_disk_run.fill()
    with pytest.raises(CommandFailed, match="No space left on device"):
        full_disk_run.harness.run("a")
    assert not full_disk_run.harness.queue()


def test_a_row_on_a_full_disk_is_an_error(full_disk_run):
    filling = call_when(lambda: full_disk_run.harness.start_count("a"), full_disk_run.fill)
    full_disk_run.harness.run("a", a="slow")
    filling.join()
    (result,) = full_disk_run.harness.folder.results().values()
    assert result.outcome == "error"
