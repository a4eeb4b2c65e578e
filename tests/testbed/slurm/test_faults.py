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
from tests.testbed.slurm.runs import DropsAfterSubmit, SlurmBed, call_when


@pytest.fixture
def bed(cluster, tmp_path):
    made = SlurmBed(tmp_path, cluster)
    yield made
    made.close()
    wait_for(lambda: not made.queue())


def test_a_job_whose_submission_got_no_answer_is_not_submitted_twice(cluster, tmp_path):
    bed = SlurmBed(tmp_path, cluster, DropsAfterSubmit(cluster.login()))
    bed.run("a")
    assert bed.outcomes() == {"a": "fits"}
    assert bed.start_count("a") == 1
    bed.close()


def test_a_job_whose_record_is_lost_is_found_by_its_name(bed):
    first = call_when(lambda: bed.start_count("a"), lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Exception, match="SIGTERM"):
        bed.run("a", a="slow")
    first.join()
    (bed.folder.row_named("a") / SUBMISSION_FILE).unlink()
    bed.run("a")
    assert bed.outcomes() == {"a": "fits"}
    assert bed.start_count("a") == 1


def test_results_of_a_job_that_ended_unobserved_are_downloaded(bed):
    first = call_when(lambda: bed.start_count("a"), lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Exception, match="SIGTERM"):
        bed.run("a", a="slow")
    first.join()
    wait_for(lambda: not bed.queue())
    bed.run("a")
    assert bed.outcomes() == {"a": "fits"}
    assert bed.start_count("a") == 1


def test_a_job_with_other_settings_is_cancelled_before_the_row_starts_again(bed):
    first = call_when(lambda: bed.start_count("a"), lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Exception, match="SIGTERM"):
        bed.run("a", a="hang")
    first.join()
    bed.run("a", limit_s=61)
    assert bed.outcomes() == {"a": "fits"}
    assert bed.start_count("a") == 2


def test_a_job_cancelled_by_others_is_an_error_with_this_reason(bed):
    call_when(lambda: bed.start_count("a"), lambda: bed.cluster.query("scancel", bed.queue()["a"]))
    bed.run("a", a="hang")
    (result,) = bed.folder.results().values()
    assert result.outcome == "error"
    assert "CANCELLED" in result.reason
    assert result.failure.phase == "backward"
    wait_for(lambda: not bed.left(), 15)


def test_a_node_that_fails_is_an_error_with_this_reason(bed):
    lost = bed.cluster.nodes[0]
    killing = call_when(lambda: bed.start_count("a"), lambda: bed.cluster.kill_node(lost))
    bed.run("a", a="hang")
    killing.join()
    bed.cluster.start_node(lost)
    (result,) = bed.folder.results().values()
    assert result.outcome == "error"
    assert "NODE_FAIL" in result.reason
    wait_for(lambda: bed.cluster.states() == ["idle"] * 2, 60)


def test_a_row_that_cannot_finish_before_the_lease_ends_is_not_started(bed):
    end = datetime.now(UTC) + timedelta(minutes=14)
    bed.options = {"ends_at": lambda: end}
    bed.run("a", limit_s=60)
    assert bed.outcomes() == {"a": "fits"}
    bed.run("b", limit_s=300)
    assert bed.outcomes() == {"a": "fits"}
    assert "b: not started, it may not finish before the lease ends" in bed.view.lines


def test_before_the_lease_ends_results_are_downloaded_and_other_jobs_cancelled(bed):
    clock = [datetime.now(UTC)]
    end = clock[0] + timedelta(hours=3)
    bed.options = {"ends_at": lambda: end, "now": lambda: clock[0]}

    def later() -> None:
        clock[0] += timedelta(hours=2, minutes=51)

    call_when(lambda: bed.start_count("b") and (bed.folder.row_named("a") / RESULT_FILE).exists(), later)
    bed.run("ab", b="hang")
    assert bed.outcomes() == {"a": "fits"}
    assert "b: cancelled, the lease ends" in bed.view.lines
    assert "last line of b" in (bed.folder.row_named("b") / "log.txt").read_text()
    wait_for(lambda: not bed.queue())


def test_a_run_uses_an_extension_of_its_lease_by_anybody(bed):
    clock = [datetime.now(UTC)]
    end = [clock[0] + timedelta(hours=3)]
    bed.options = {"ends_at": lambda: end[0], "now": lambda: clock[0]}

    def extended() -> None:
        end[0] += timedelta(hours=2)
        clock[0] += timedelta(hours=2, minutes=51)

    call_when(lambda: bed.start_count("a"), extended)
    bed.run("a", a="slow")
    assert bed.outcomes() == {"a": "fits"}
    assert not any("the lease ends" in line for line in bed.view.lines)


def test_a_run_does_not_wait_for_nodes_whose_lease_has_ended(bed):
    bed.options = {"is_leased": lambda: False}
    stopping = call_when(lambda: bed.start_count("a"), bed.cluster.sshd.stop)
    try:
        bed.run("a", a="hang")
    finally:
        stopping.join()
        bed.cluster.sshd.start()
    assert bed.outcomes() == {}
    assert "a: not finished, the lease is over or was deleted" in bed.view.lines


def test_a_job_without_the_gpu_of_its_profile_rejects_the_row(bed):
    bed.runner({}).run(rows_to_run(spec("a", size="full", weights="random")))
    (result,) = bed.folder.results().values()
    assert (result.outcome, result.reason) == ("refused", "no GPU: full size needs one; size tiny runs anywhere")
    assert bed.start_count("a") == 0


def test_a_profile_that_slurm_rejects_is_an_error_in_one_line(cluster, tmp_path):
    bed = SlurmBed(tmp_path, cluster, partition="nowhere")
    with pytest.raises(InputError, match=r"row a: .*Invalid partition name specified"):
        bed.run("a")
    bed.close()


def test_a_missing_python_is_an_error_in_one_line(cluster, tmp_path):
    bed = SlurmBed(tmp_path, cluster, environment="/nowhere")
    with pytest.raises(InputError, match=r"profile testbed: venv /nowhere: its Python cannot run rows: .*No such file"):
        bed.run("a")
    bed.close()


class FullDiskRun:
    """A run in a folder on the cluster whose file system ``fill`` fills."""

    def __init__(self, cluster, path) -> None:
        self.place = cluster.state / SMALL
        if not os.path.ismount(self.place):
            pytest.skip("may not mount a small file system")
        self.bed = SlurmBed(path, cluster, folder=str(self.place / path.name))

    def fill(self) -> None:
        with suppress(OSError), (self.place / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(1 << 16))

    def clear(self) -> None:
        self.bed.close()
        wait_for(lambda: not self.bed.queue())
        (self.place / "filler").unlink(missing_ok=True)


@pytest.fixture
def full_disk_run(cluster, tmp_path):
    made = FullDiskRun(cluster, tmp_path)
    yield made
    made.clear()


def test_too_little_disk_space_is_reported_before_any_submission(full_disk_run):
    full_disk_run.fill()
    with pytest.raises(CommandFailed, match="No space left on device"):
        full_disk_run.bed.run("a")
    assert not full_disk_run.bed.queue()


def test_a_row_on_a_full_disk_is_an_error(full_disk_run):
    filling = call_when(lambda: full_disk_run.bed.start_count("a"), full_disk_run.fill)
    full_disk_run.bed.run("a", a="slow")
    filling.join()
    (result,) = full_disk_run.bed.folder.results().values()
    assert result.outcome == "error"
