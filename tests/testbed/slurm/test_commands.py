"""`testbed run --site slurm` as users type it: on a host in the SSH configuration; killed, disconnected, stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.results.schema import RESULT_FILE
from experiments.runners.slurm.submission import SUBMISSION_FILE
from tests.support.processes.waiting import enable_interrupts, wait_for
from tests.support.runners import fake_testbed
from tests.support.runners.fake_worker import LARGE_BYTES
from tests.support.services.sshd import write_ssh_client
from tests.testbed.slurm.cluster import REPOSITORY
from tests.testbed.slurm.conftest import profile_of

ROWS = ("baseline", "reduced-batch")
SUITE = "single_gpu_blip2"
RUN_ID = "jobs"


class CliUser:
    """A user with an SSH configuration and a profile, who types commands."""

    def __init__(self, cluster, path: Path) -> None:
        self.cluster, self.path = cluster, path
        self.rows = path / "results" / RUN_ID / SUITE
        self.journal = cluster.home / f"journal-{path.name}"
        login = cluster.login()
        paths = f"{write_ssh_client(path)}:{os.environ['PATH']}"
        self.environment = {**os.environ, "HOME": str(path), "PATH": paths, "CUDA_VISIBLE_DEVICES": ""}
        ssh = path / ".ssh"
        (ssh / "known_hosts").write_text(login.known_hosts.read_text())
        host = f"HostName {login.host}\nPort {login.port}\nUser {login.user}\nIdentityFile {login.key}\n"
        (ssh / "config").write_text(
            f"Host super\n{host}HostKeyAlias {login.alias}\nUserKnownHostsFile {ssh}/known_hosts\n"
        )

    def profile(self, **behavior: str) -> Path:
        behaviors = ",".join(f"{row}={action}" for row, action in behavior.items())
        profile = profile_of(self.cluster, FAKE=behaviors, FAKE_JOURNAL=str(self.journal))
        file = self.path / "super.yaml"
        data = {**profile.model_dump(mode="json"), "host": "super", "folder": f"testbed-{self.path.name}"}
        file.write_text(json.dumps(data))
        return file

    def start_command(
        self, *more: str, program: str = fake_testbed.__name__, **behavior: str
    ) -> "subprocess.Popen[str]":
        rows = [part for row in ROWS for part in ("--row", row)]
        profile = self.profile(**{name.replace("_", "-"): action for name, action in behavior.items()})
        where = ["--site", "slurm", "--profile", str(profile), "--results", str(self.path / "results")]
        return subprocess.Popen(
            [sys.executable, "-m", program, "run", SUITE, *rows, *where, "--run-id", RUN_ID, "--size", "tiny", *more],
            env=self.environment,
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=enable_interrupts,
        )

    def output_of(self, *arguments: str) -> str:
        """Return the output of a read-only command."""
        command = [sys.executable, "-m", "experiments", *arguments]
        return subprocess.run(command, env=self.environment, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True).stdout

    def start_count(self, row: str) -> int:
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return sum(line.startswith(f"{row} ") and len(line.split()) == 3 for line in lines)

    def outcome(self, row: str) -> str:
        return json.loads((self.rows / row / RESULT_FILE).read_text())["outcome"]

    def queue(self) -> list[str]:
        return self.cluster.query("squeue", "--noheader", "--format=%j").split()


@pytest.fixture
def cli_user(cluster, tmp_path):
    made = CliUser(cluster, tmp_path)
    yield made
    cluster.query("scancel", "--user", cluster.user, check=False)
    wait_for(lambda: not made.queue())


def test_real_rows_run_on_the_cluster_and_are_evaluated_on_this_machine(cli_user):
    running = cli_user.start_command("--no-predict", program="experiments")
    said = running.communicate(timeout=200)[0]
    assert running.returncode in (0, 1), said
    assert {row: cli_user.outcome(row) for row in ROWS} == dict.fromkeys(ROWS, "fits")
    assert (cli_user.path / "results" / RUN_ID / "report.html").exists()
    for name in ("notebook.ipynb", "log.txt", "telemetry.csv"):
        assert (cli_user.rows / "baseline" / name).stat().st_size > 0


def test_the_jobs_of_a_killed_command_are_tracked_by_the_next_command(cli_user):
    first = cli_user.start_command(reduced_batch="slow")
    wait_for(lambda: cli_user.start_count("baseline") and cli_user.start_count("reduced-batch"))
    first.kill()
    first.wait()
    second = cli_user.start_command()
    said = second.communicate(timeout=120)[0]
    assert {row: cli_user.outcome(row) for row in ROWS} == dict.fromkeys(ROWS, "fits"), said
    assert [cli_user.start_count(row) for row in ROWS] == [1, 1]


def test_a_command_killed_during_a_submission_submits_no_job_twice(cli_user):
    first = cli_user.start_command()
    wait_for(lambda: (cli_user.rows / "baseline" / SUBMISSION_FILE).exists())
    first.kill()
    first.wait()
    said = cli_user.start_command().communicate(timeout=120)[0]
    assert {row: cli_user.outcome(row) for row in ROWS} == dict.fromkeys(ROWS, "fits"), said
    assert [cli_user.start_count(row) for row in ROWS] == [1, 1]


@pytest.mark.parametrize("fault", ["killed", "cut"])
def test_an_interrupted_download_is_completed(cli_user, fault):
    running = cli_user.start_command(baseline="large")
    part = cli_user.rows / "baseline" / "large.part"
    wait_for(lambda: part.exists() and part.stat().st_size > 0)
    assert not (cli_user.rows / "baseline" / RESULT_FILE).exists()
    if fault == "killed":
        running.kill()
        running.wait()
        running = cli_user.start_command()
    else:
        cli_user.cluster.sshd.drop_connections()
    said = running.communicate(timeout=120)[0]
    assert {row: cli_user.outcome(row) for row in ROWS} == dict.fromkeys(ROWS, "fits"), said
    assert [cli_user.start_count(row) for row in ROWS] == [1, 1]
    assert (cli_user.rows / "baseline" / "large").stat().st_size == LARGE_BYTES
    assert not part.exists()


def test_rows_on_the_cluster_are_monitored_from_this_machine(cli_user):
    running = cli_user.start_command(reduced_batch="hang")
    wait_for(lambda: cli_user.start_count("reduced-batch"))
    run = str(cli_user.path / "results" / RUN_ID)
    wait_for(lambda: "last line of reduced-batch" in cli_user.output_of("logs", "reduced-batch", run))
    sight = json.loads(cli_user.output_of("top", "--profile", str(cli_user.path / "super.yaml"), "--once", "--json"))
    (row,) = [row for row in sight["rows"] if row["name"] == f"{RUN_ID}/{SUITE}/reduced-batch"]
    assert (row["state"], row["progress"]["phase"]) == ("RUNNING", "backward")
    cli_user.start_command("--cancel").wait(60)
    running.communicate(timeout=60)


def test_after_ctrl_c_the_command_reports_that_jobs_continue_and_how_to_cancel_them(cli_user):
    running = cli_user.start_command(reduced_batch="hang")
    wait_for(lambda: cli_user.start_count("reduced-batch"))
    running.send_signal(signal.SIGINT)
    said = running.communicate(timeout=60)[0]
    assert running.returncode == 130
    assert "continue at super" in said
    assert f"{RUN_ID}/{SUITE}/reduced-batch" in cli_user.queue()
    cancelling = cli_user.start_command("--cancel")
    assert "reduced-batch" in cancelling.communicate(timeout=60)[0]
    wait_for(lambda: not cli_user.queue())


def test_a_dropped_connection_loses_no_row(cli_user):
    running = cli_user.start_command(reduced_batch="slow")
    wait_for(lambda: cli_user.start_count("reduced-batch"))
    cli_user.cluster.sshd.stop()
    time.sleep(5)
    cli_user.cluster.sshd.start()
    said = running.communicate(timeout=120)[0]
    assert {row: cli_user.outcome(row) for row in ROWS} == dict.fromkeys(ROWS, "fits"), said
    assert [cli_user.start_count(row) for row in ROWS] == [1, 1]


def test_an_invalid_profile_is_rejected_in_one_line(cli_user):
    running = cli_user.start_command()
    running.kill()
    running.wait()
    file = cli_user.profile()
    file.write_text(file.read_text().replace('"gpus_per_node"', '"gpu_per_node"'))
    rejected = subprocess.run(
        [sys.executable, "-m", "experiments", "run", SUITE, "--site", "slurm", "--profile", str(file)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert rejected.returncode == 2
    assert "unknown key 'gpu_per_node'; allowed: account, apptainer, cpu_partition" in rejected.stderr
