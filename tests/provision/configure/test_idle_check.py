"""When the program on a node ends its lease: only if the node was idle for the set time and its results are saved.

Fakes: the clock, the commands' output, the lease, and the root folder with /proc and /dev.
"""

import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from tests.support.leasing import idle_check
from tests.support.needs import need

check = idle_check.load()
IDLE_S = 1800
MINUTE = 60


class FakeLease:
    def __init__(self):
        self.status_now, self.problem, self.deleted = "ACTIVE", "", 0

    def status(self):
        if self.problem:
            raise check.CheckFailed(self.problem)
        return self.status_now

    def delete(self):
        self.status()
        self.deleted += 1
        self.status_now = None


class FakeNodeAndClock:
    """A fake node, its lease and its clock. answers: the output of each command, or its error."""

    def __init__(self, folder):
        self.root, self.home = folder / "root", folder / "root/home/cc"
        (self.home / "llm-testbed").mkdir(parents=True)
        self.answers = {"squeue": "", "nvidia-smi": ""}
        self.program("usr/bin/squeue")
        self.program("usr/bin/nvidia-smi")
        self.settings = check.Settings(IDLE_S, str(self.home), "http://k", "http://b/leases/1", "id", "not-to-be-seen")
        self.lease, self.state, self.now = FakeLease(), None, check.ClockReading(1_000_000.0, 500.0, "boot")

    def program(self, path):
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).touch()

    def run(self, command, limit_s):
        answer = self.answers[command[0]]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def process(self, number, title):
        (self.root / f"proc/{number}").mkdir(parents=True, exist_ok=True)
        (self.root / f"proc/{number}/cmdline").write_bytes(title.encode())

    @property
    def node(self):
        return check.Node(self.settings, self.run, self.root)

    def pass_time(self, seconds, wall_s=None):
        wall = self.now.wall_s + (seconds if wall_s is None else wall_s)
        self.now = replace(self.now, wall_s=wall, passed_s=self.now.passed_s + seconds)

    def check(self):
        self.state, line = check.check(self.settings, self.node, self.lease, self.state, self.now)
        return line

    def check_each_minute(self, minutes):
        """Check once a minute; return the last line."""
        for _ in range(minutes):
            self.pass_time(MINUTE)
            line = self.check()
        return line


@pytest.fixture
def fake_node(tmp_path):
    made = FakeNodeAndClock(tmp_path)
    made.check()
    return made


def test_an_idle_node_ends_its_lease_after_the_set_time_and_not_before(fake_node):
    assert fake_node.check_each_minute(29) == "idle for 1740 of 1800 s"
    assert fake_node.lease.deleted == 0
    assert fake_node.check_each_minute(1) == "the results are saved and the lease is ended"
    assert fake_node.lease.deleted == 1
    assert "it no longer exists" in fake_node.check_each_minute(1)


@pytest.mark.parametrize(
    ("command", "output", "words"),
    [("squeue", "RUNNING\nPENDING\n", "2 jobs"), ("nvidia-smi", "4242\n", "1 GPU processes")],
)
def test_a_job_or_a_process_on_a_gpu_counts_as_work(fake_node, command, output, words):
    fake_node.check_each_minute(25)
    fake_node.answers[command] = output
    assert fake_node.check_each_minute(60) == f"busy: {words}"
    fake_node.answers[command] = ""
    fake_node.check_each_minute(30)
    assert fake_node.lease.deleted == 0
    fake_node.check_each_minute(1)
    assert fake_node.lease.deleted == 1


@pytest.mark.parametrize(
    ("title", "busy"),
    [
        ("sshd: cc@pts/0\0", True),
        ("sshd: cc@notty\0", True),
        ("sshd-session: cc@pts/3\0", True),
        ("sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups\0", False),
        ("sshd: root [priv]\0", False),
        ("sshd: unknown [net]\0", False),
        ("bash\0", False),
        ("ssh\0cc@elsewhere\0", False),
    ],
)
def test_only_the_session_of_a_user_who_is_logged_in_counts_as_work(fake_node, title, busy):
    fake_node.process(77, title)
    fake_node.check_each_minute(40)
    assert fake_node.lease.deleted == int(not busy)


def test_a_login_between_two_checks_starts_the_idle_time_again(fake_node):
    fake_node.check_each_minute(25)
    logins = fake_node.root / "var/log/wtmp"
    logins.parent.mkdir(parents=True)
    logins.touch()
    fake_node.check_each_minute(30)
    assert fake_node.lease.deleted == 0
    fake_node.check_each_minute(1)
    assert fake_node.lease.deleted == 1


def test_an_amd_gpu_that_a_process_has_open_counts_as_work(fake_node):
    (fake_node.root / "dev").mkdir()
    (fake_node.root / "dev/kfd").touch()
    (fake_node.root / "proc/5/fd").mkdir(parents=True)
    (fake_node.root / "proc/5/fd/3").symlink_to("/dev/kfd")
    assert fake_node.check_each_minute(40) == "busy: 1 GPU processes"
    assert fake_node.lease.deleted == 0


@pytest.mark.parametrize("command", ["squeue", "nvidia-smi"])
def test_a_node_counts_as_busy_while_a_check_fails(fake_node, command):
    fake_node.answers[command] = check.CheckFailed(f"{command} ended with 9: no communication")
    assert (
        fake_node.check_each_minute(60)
        == f"the check failed, so the node counts as busy: {command} ended with 9: no communication"
    )
    fake_node.answers[command] = ""
    fake_node.check_each_minute(30)
    assert fake_node.lease.deleted == 0
    fake_node.check_each_minute(1)
    assert fake_node.lease.deleted == 1


def test_a_gpu_without_its_driver_counts_as_busy_and_a_node_without_a_gpu_does_not(fake_node):
    (fake_node.root / "usr/bin/nvidia-smi").unlink()
    (fake_node.root / "dev").mkdir()
    (fake_node.root / "dev/nvidia0").touch()
    assert "no nvidia-smi" in fake_node.check_each_minute(40)
    (fake_node.root / "dev/nvidia0").unlink()
    fake_node.check_each_minute(31)
    assert fake_node.lease.deleted == 1


@pytest.mark.parametrize("step_s", [-7200, 7200, 120])
def test_after_a_change_of_the_clock_the_idle_time_begins_again(fake_node, step_s):
    fake_node.check_each_minute(29)
    fake_node.pass_time(MINUTE, wall_s=MINUTE + step_s)
    fake_node.check()
    fake_node.check_each_minute(29)
    assert fake_node.lease.deleted == 0
    fake_node.check_each_minute(1)
    assert fake_node.lease.deleted == 1


def test_after_a_pause_of_the_checks_or_a_reboot_the_idle_time_begins_again(fake_node):
    fake_node.check_each_minute(20)
    fake_node.pass_time(3600)
    assert fake_node.check() == "idle for 0 of 1800 s"
    fake_node.check_each_minute(29)
    fake_node.pass_time(MINUTE)
    fake_node.now = replace(fake_node.now, boot="another")
    assert fake_node.check() == "idle for 0 of 1800 s"
    assert fake_node.lease.deleted == 0


def test_a_lease_is_not_ended_until_blazar_answers(fake_node):
    fake_node.lease.problem = "blazar: timed out"
    assert "but the lease continues: blazar: timed out" in fake_node.check_each_minute(40)
    fake_node.lease.problem = ""
    assert "ended" in fake_node.check_each_minute(1)


def job(fake_node, name="row-12345678", **files):
    folder = fake_node.home / "llm-testbed/run-1/.jobs" / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("started", "ended"):
        (folder / file).write_text("0")
    return folder


def test_the_lease_does_not_end_while_results_are_only_on_the_disk_of_the_node(fake_node):
    folder = job(fake_node)
    line = fake_node.check_each_minute(60)
    assert f"1 results are only on this disk, in {fake_node.home}/llm-testbed: run-1/row-12345678" in line
    assert fake_node.lease.deleted == 0
    (folder / "fetched").touch()
    fake_node.check_each_minute(32)
    assert fake_node.lease.deleted == 1


def test_the_lease_does_not_end_while_a_notebook_has_not_been_downloaded(fake_node):
    notebook = fake_node.home / "llm-testbed/notebooks/lab.ipynb"
    notebook.parent.mkdir()
    notebook.touch()
    assert "lab.ipynb" in fake_node.check_each_minute(60)
    (fake_node.home / "llm-testbed/notebooks-fetched").touch()
    assert "ended" in fake_node.check_each_minute(1)


def copy_results_with_rsync(fake_node, target):
    """Let the results be copied to a folder by the real rsync."""
    need(("rsync",), "rsync")
    fake_node.settings = replace(fake_node.settings, results_to=str(target))
    fake_node.run = lambda command, limit_s: (
        check.run(command, limit_s) if command[0] == "rsync" else fake_node.answers[command[0]]
    )


def test_results_are_copied_completely_before_the_lease_ends(fake_node, tmp_path):
    job(fake_node)
    row = fake_node.home / "llm-testbed/run-1/lab/row"
    for path in (row / "result.json", row / "trainer/weights.bin", fake_node.home / "llm-testbed/cache/model.bin"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    copy_results_with_rsync(fake_node, tmp_path / "saved")
    assert "ended" in fake_node.check_each_minute(31)
    saved = {str(path.relative_to(tmp_path / "saved")) for path in (tmp_path / "saved").rglob("*") if path.is_file()}
    assert {"run-1/lab/row/result.json", "run-1/.jobs/row-12345678/ended"} <= saved
    assert not [path for path in saved if "weights" in path or "model" in path]


def test_the_lease_does_not_end_while_copying_its_results_fails(fake_node, tmp_path):
    job(fake_node)
    (tmp_path / "saved").write_text("a file, not a folder")
    copy_results_with_rsync(fake_node, tmp_path / "saved")
    assert "but the lease continues: rsync ended with" in fake_node.check_each_minute(60)
    assert fake_node.lease.deleted == 0
    (tmp_path / "saved").unlink()
    assert "ended" in fake_node.check_each_minute(1)


def test_the_lease_does_not_end_if_work_begins_while_its_results_are_copied(fake_node):
    def log_in(self):
        fake_node.process(9, "sshd: cc@pts/1\0")

    node = type("Busy", (check.Node,), {"save_results": log_in})(fake_node.settings, fake_node.run, fake_node.root)
    fake_node.check_each_minute(29)
    fake_node.pass_time(MINUTE)
    line = check.check(fake_node.settings, node, fake_node.lease, fake_node.state, fake_node.now)[1]
    assert "work began while the results were saved" in line
    assert fake_node.lease.deleted == 0


@pytest.fixture
def jupyter(fake_node):
    """A Jupyter server's API with one kernel; its state and the tokens that it got."""
    server_state: dict[str, Any] = {"state": "busy", "code": 200, "tokens": []}

    class Api(BaseHTTPRequestHandler):
        def do_GET(self):
            server_state["tokens"].append(self.headers["Authorization"])
            self.send_response(server_state["code"])
            self.end_headers()
            self.wfile.write(json.dumps([{"name": "python3", "execution_state": server_state["state"]}]).encode())

        def log_message(self, *_):
            """Log nothing."""

    server = HTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    file = fake_node.home / "llm-testbed/cache/.local/share/jupyter/runtime/jpserver-7.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"port": server.server_port, "base_url": "/", "token": "a-token"}))
    yield server_state
    server.shutdown()
    server.server_close()


def test_a_busy_jupyter_kernel_counts_as_work_and_an_idle_one_does_not(fake_node, jupyter):
    assert fake_node.check_each_minute(40) == "busy: 1 busy Jupyter kernels"
    assert set(jupyter["tokens"]) == {"token a-token"}
    jupyter["state"] = "idle"
    fake_node.check_each_minute(31)
    assert fake_node.lease.deleted == 1


def test_a_jupyter_server_that_rejects_requests_counts_as_busy_and_a_stopped_one_does_not(fake_node, jupyter):
    jupyter["code"] = 403
    assert "responds with 403" in fake_node.check_each_minute(1)
    for file in fake_node.home.rglob("jpserver-7.json"):
        file.write_text(json.dumps({"port": 9, "base_url": "/", "token": "a-token"}))
    fake_node.check_each_minute(31)
    assert fake_node.lease.deleted == 1


def test_the_state_of_the_check_is_read_from_the_disk_unless_it_is_damaged(fake_node, tmp_path):
    file = tmp_path / "state/idle.json"
    check.write_state(file, fake_node.state)
    assert check.read_state(file) == fake_node.state
    file.write_text(file.read_text()[:-5])
    assert check.read_state(file) is None


def test_no_secret_is_in_the_log_of_the_check(fake_node):
    fake_node.lease.problem = "keystone responds with 401"
    lines = [fake_node.check_each_minute(1) for _ in range(40)]
    assert "not-to-be-seen" not in "".join([*lines, repr(fake_node.settings)])
