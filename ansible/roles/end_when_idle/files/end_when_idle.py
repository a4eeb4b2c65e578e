#!/usr/bin/env python3
"""End this node's lease after the node has had no work for a set time.

A timer runs this program once a minute as root. The node is busy while Slurm has a job, a process uses a GPU, somebody
is logged in by SSH, or a Jupyter kernel computes. The program ends the lease only if every check during the set time
found the node idle, and if all results are saved. If a check fails, the node also counts as busy. The log contains no
secret.
"""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from email.message import Message
from pathlib import Path

SETTINGS = Path("/etc/llm-testbed/end-when-idle.json")
STATE = Path("/var/lib/llm-testbed/end-when-idle.json")
QUERY_LIMIT_S = 60
"""Time limit of a query, seconds."""
SAVE_LIMIT_S = 3000
"""Time limit of one attempt to copy the results, seconds."""
LONGEST_GAP_S = 300
"""Longest gap between two checks, seconds. After a longer gap, the idle time is 0 again."""
CLOCK_STEP_S = 60
"""Largest adjustment of the system clock between two checks, seconds. After a larger one, the idle time is 0 again."""
JOBS, STARTED, FETCHED = ".jobs", "started", "fetched"
"""The folder of jobs in a run's folder, and two files in each job's folder; see experiments/runners/slurm/layout.py."""
NOTEBOOKS, NOTEBOOKS_FETCHED = "notebooks", "notebooks-fetched"
"""The folder of notebooks, and the file whose time states when the user's computer last downloaded notebooks."""
SSH_OPTIONS = "-o StrictHostKeyChecking=yes -o BatchMode=yes -o IdentitiesOnly=yes -o ConnectTimeout=30"
EXCLUDED_PATTERNS = ("/cache", "/code", "*.part", "trainer")
"""Patterns of rsync for files that are not results and are not copied."""
JUPYTER_FOLDERS = (".local/share/jupyter/runtime", "llm-testbed/cache/.local/share/jupyter/runtime")
"""Folders in which Jupyter servers store their addresses, relative to a home folder."""

Run = Callable[[Sequence[str], float], str]
"""Runs a command with a time limit in seconds; returns its output. Raises CheckFailed if it fails."""


class CheckFailed(Exception):
    """A check failed: a file cannot be read, or a program or service does not answer. No secret is in the message."""


@dataclass(frozen=True)
class Settings:
    """The settings that `testbed lease --end-when-idle` wrote.

    idle_s: seconds without work after which the lease ends. home: the user's home folder. auth_url: keystone's URL.
    lease_url: the lease's URL at Blazar. results_to: rsync target of the results; '': the lease ends only after the
    user's computer has downloaded all results. key, known_hosts: files of ssh for the connection to the target.
    """

    idle_s: float
    home: str
    auth_url: str
    lease_url: str
    credential_id: str
    secret: str = field(repr=False)
    results_to: str = ""
    key: str = "/etc/llm-testbed/results_key"
    known_hosts: str = "/etc/llm-testbed/results_known_hosts"

    @property
    def results(self) -> Path:
        """Return the folder of all runs and notebooks."""
        return Path(self.home) / "llm-testbed"


@dataclass(frozen=True)
class ClockReading:
    """A time. wall_s: Unix time of the system clock. passed_s: seconds since boot. boot: the id of this boot."""

    wall_s: float
    passed_s: float
    boot: str


@dataclass(frozen=True)
class CheckState(ClockReading):
    """The result of the last check, with the time of the check.

    idle_since_s: start of the idle time, seconds since boot; None if the node was busy. marks: modification times of
    files that change when somebody works on the node. They also reveal work between two checks.
    """

    idle_since_s: float | None
    marks: dict[str, float]


def read_clock() -> ClockReading:
    """Return the current time."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ClockReading(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME), boot)


def run(command: Sequence[str], limit_s: float) -> str:
    """Run a command; return its output. Raises CheckFailed if it is missing, fails or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise CheckFailed(f"{command[0]} failed: {type(problem).__name__}") from None
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise CheckFailed(f"{command[0]} ended with {done.returncode}: {' '.join(last)[:200]}")
    return done.stdout


class Node:
    """This node. root: the root folder; tests replace it."""

    def __init__(self, settings: Settings, run: Run = run, root: Path = Path("/")) -> None:
        self._settings, self._run, self._root = settings, run, root

    def find_work(self) -> list[str]:
        """Return the work that the node is doing, as text; [] if the node is idle. Raises CheckFailed."""
        jobs = self._run_if_installed("squeue", "--noheader", "--format=%T")
        gpu_processes, users, kernels = self._gpu_processes(), self._logged_in_users(), self._busy_kernels()
        work = {
            f"{len(jobs)} jobs": jobs,
            f"{len(gpu_processes)} GPU processes": gpu_processes,
            f"logged in: {', '.join(users)}": users,
            f"{len(kernels)} busy Jupyter kernels": kernels,
        }
        return [text for text, items in work.items() if items]

    def marks(self) -> dict[str, float]:
        """Return the last modification times of logins, jobs and notebooks."""
        files = {"logins": [self._root / "var/log/wtmp"]}
        files["jobs"] = [file for job in self._job_folders() for file in (job, job / STARTED, job / "ended")]
        files["notebooks"] = self._notebooks()
        return {name: _last_modification_s(paths) for name, paths in files.items()}

    def unfetched_results(self) -> list[str]:
        """Return the names of the results that the user's computer has not downloaded."""
        started = [job for job in self._job_folders() if (job / STARTED).exists()]
        rows = [f"{job.parents[1].name}/{job.name}" for job in started if not (job / FETCHED).exists()]
        last_download_s = _last_modification_s([self._settings.results / NOTEBOOKS_FETCHED])
        return rows + [file.name for file in self._notebooks() if file.stat().st_mtime > last_download_s]

    def save_results(self) -> None:
        """Copy the results to the target and verify the copy; without a target, check that the user has downloaded all.

        Raises CheckFailed if results could be lost.
        """
        settings = self._settings
        if not settings.results_to and (unfetched := self.unfetched_results()):
            where = f"only on this disk, in {settings.results}"
            raise CheckFailed(f"{len(unfetched)} results are {where}: {', '.join(unfetched[:5])}")
        if settings.results_to and settings.results.is_dir():
            self._run(rsync_command(settings), SAVE_LIMIT_S)
            compare = rsync_command(settings, "--checksum", "--dry-run", "--itemize-changes")
            if differing := self._run(compare, SAVE_LIMIT_S).strip():
                raise CheckFailed(f"the copy at {settings.results_to} differs: {differing.splitlines()[0]}")

    def _run_if_installed(self, program: str, *options: str) -> list[str]:
        """Return the words that the program prints; [] if it is not installed. Raises CheckFailed if it fails."""
        return self._run([program, *options], QUERY_LIMIT_S).split() if self._has_program(program) else []

    def _gpu_processes(self) -> list[str]:
        """Return the ids of the processes that use an NVIDIA or AMD GPU. Raises CheckFailed."""
        if list(self._root.glob("dev/nvidia[0-9]*")) and not self._has_program("nvidia-smi"):
            raise CheckFailed("the node has an NVIDIA GPU but no nvidia-smi")
        nvidia_pids = self._run_if_installed("nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader")
        amd_pids = self._processes_using("/dev/kfd") if (self._root / "dev/kfd").exists() else []
        return nvidia_pids + amd_pids

    def _processes_using(self, device: str) -> list[str]:
        """Return the ids of the processes that have the file ``device`` open. Raises CheckFailed."""
        pids = []
        for folder in self._root.glob("proc/[0-9]*/fd"):
            try:
                open_files = [os.readlink(link) for link in folder.iterdir()]
            except FileNotFoundError:  # the process has ended
                continue
            except OSError as problem:
                raise CheckFailed(f"{folder} cannot be read: {type(problem).__name__}") from None
            pids += [folder.parent.name] if device in open_files else []
        return pids

    def _logged_in_users(self) -> list[str]:
        """Return USER@TERMINAL of each SSH session, from the title of the session's process: `sshd: USER@TERMINAL`."""
        users = []
        for file in self._root.glob("proc/[0-9]*/cmdline"):
            try:
                title = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
            program, _, rest = title.partition(": ")
            if program in ("sshd", "sshd-session") and "@" in rest.split(" ")[0]:
                users.append(rest.split(" ")[0])
        return sorted(users)

    def _busy_kernels(self) -> list[dict[str, str]]:
        files = [file for folder in JUPYTER_FOLDERS for file in self._root.glob(f"home/*/{folder}/jpserver-*.json")]
        kernels = [kernel for file in files for kernel in _kernels_of(file)]
        return [kernel for kernel in kernels if kernel.get("execution_state") != "idle"]

    def _job_folders(self) -> list[Path]:
        return sorted(self._settings.results.glob(f"*/{JOBS}/*"))

    def _notebooks(self) -> list[Path]:
        return [path for path in (self._settings.results / NOTEBOOKS).rglob("*") if path.is_file()]

    def _has_program(self, name: str) -> bool:
        folders = ("usr/bin", "usr/local/bin", "usr/sbin", "opt/slurm/bin")
        return any((self._root / folder / name).exists() for folder in folders)


def _last_modification_s(files: Sequence[Path]) -> float:
    """Return the latest modification time of the files that exist; 0 if none exists."""
    return max((file.stat().st_mtime for file in files if file.exists()), default=0.0)


def rsync_command(settings: Settings, *options: str) -> list[str]:
    """Return the command that copies the results to the target. options: additional options of rsync."""
    ssh = f"ssh -i {settings.key} -o UserKnownHostsFile={settings.known_hosts} {SSH_OPTIONS}"
    excluded = [f"--exclude={pattern}" for pattern in EXCLUDED_PATTERNS]
    command = ["rsync", "--archive", "--no-owner", "--no-group", "--omit-dir-times", *excluded, *options]
    return [*command, f"--rsh={ssh}", f"{settings.results}/", settings.results_to]


def _kernels_of(server_file: Path) -> list[dict[str, str]]:
    """Return the kernels of a Jupyter server; [] if the server has ended. Raises CheckFailed if it does not answer.

    server_file: the file in which the server has stored its address and token.
    """
    try:
        server = json.loads(server_file.read_text())
        url = f"http://127.0.0.1:{server.get('port')}{server.get('base_url', '/')}api/kernels"
        request = urllib.request.Request(url, headers={"Authorization": f"token {server.get('token')}"})
        with _OPENER.open(request, timeout=QUERY_LIMIT_S) as response:
            return json.load(response)
    except urllib.error.HTTPError as problem:
        raise CheckFailed(f"the Jupyter server of {server_file} responds with {problem.code}") from None
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "reason", type(problem).__name__)
        if isinstance(reason, ConnectionRefusedError):
            return []
        raise CheckFailed(f"the Jupyter server of {server_file}: {reason}") from None


_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Connects to servers on this node, without a proxy."""


class Lease:
    """The lease at the site. The node's credential can only read and delete it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def status(self) -> str | None:
        """Return the lease's status; None if it no longer exists. Raises CheckFailed."""
        code, response = self._request("GET")
        if code == 404:
            return None
        try:
            return str(json.loads(response)["lease"]["status"])
        except (KeyError, TypeError, ValueError):
            raise CheckFailed("blazar: no lease in the response") from None

    def delete(self) -> None:
        """Delete the lease. Raises CheckFailed."""
        self._request("DELETE")

    def _request_token(self) -> str:
        secret = {"id": self._settings.credential_id, "secret": self._settings.secret}
        identity = {"methods": ["application_credential"], "application_credential": secret}
        request = urllib.request.Request(  # noqa: S310 - an address of the site
            f"{self._settings.auth_url.rstrip('/')}/auth/tokens",
            json.dumps({"auth": {"identity": identity}}).encode(),
            {"Content-Type": "application/json"},
        )
        code, headers, _ = _send(request, "keystone")
        if code >= 300:
            raise CheckFailed(f"keystone responds with {code}")
        return headers["X-Subject-Token"]

    def _request(self, method: str) -> tuple[int, bytes]:
        """Return the status code and body of the response; Blazar requires the header Accept. Raises CheckFailed."""
        headers = {"X-Auth-Token": self._request_token(), "Accept": "application/json"}
        request = urllib.request.Request(self._settings.lease_url, headers=headers, method=method)  # noqa: S310 - an address of the site
        code, _, body = _send(request, "blazar")
        if code >= 300 and code != 404:
            raise CheckFailed(f"blazar responds with {code} to {method}")
        return code, body


def _send(request: urllib.request.Request, service: str) -> tuple[int, Message, bytes]:
    """Return the status code, headers and body of the response. Raises CheckFailed if the service does not answer."""
    try:
        with urllib.request.urlopen(request, timeout=QUERY_LIMIT_S) as response:  # noqa: S310 - an address of the site
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as problem:
        return problem.code, problem.headers, b""
    except OSError as problem:
        raise CheckFailed(f"{service}: {getattr(problem, 'reason', type(problem).__name__)}") from None


def next_state(
    before: CheckState | None, now: ClockReading, work: Sequence[str], marks: dict[str, float]
) -> CheckState:
    """Return the state after a check. After work, a reboot, a long gap or a clock change, the idle time is 0 again."""
    idle_since_s: float | None = now.passed_s
    if work:
        idle_since_s = None
    elif before and before.idle_since_s is not None and before.marks == marks and _idle_time_continues(before, now):
        idle_since_s = before.idle_since_s
    return CheckState(**asdict(now), idle_since_s=idle_since_s, marks=marks)


def _idle_time_continues(before: CheckState, now: ClockReading) -> bool:
    passed = now.passed_s - before.passed_s
    steady = abs(now.wall_s - before.wall_s - passed) <= CLOCK_STEP_S
    return before.boot == now.boot and 0 <= passed <= LONGEST_GAP_S and steady


def check(
    settings: Settings, node: Node, lease: Lease, before: CheckState | None, now: ClockReading
) -> tuple[CheckState, str]:
    """Check once, and end the lease after enough idle time. Return the new state and a line for the log."""
    try:
        work, marks = node.find_work(), node.marks()
    except CheckFailed as problem:
        return next_state(before, now, ["unknown"], {}), f"the check failed, so the node counts as busy: {problem}"
    state = next_state(before, now, work, marks)
    if state.idle_since_s is None:
        return state, f"busy: {', '.join(work)}"
    idle_s = now.passed_s - state.idle_since_s
    if idle_s < settings.idle_s:
        return state, f"idle for {idle_s:.0f} of {settings.idle_s:.0f} s"
    try:
        return state, _end_lease(node, lease, marks)
    except CheckFailed as problem:
        return state, f"idle for {idle_s:.0f} s, but the lease continues: {problem}"


def _end_lease(node: Node, lease: Lease, marks: dict[str, float]) -> str:
    """Save the results and end the lease. Raises CheckFailed if that fails, or if the node has work again."""
    status = lease.status()
    if status != "ACTIVE":
        raise CheckFailed(f"its status is {status}" if status else "it no longer exists")
    node.save_results()
    if node.find_work() or node.marks() != marks:
        raise CheckFailed("work began while the results were saved")
    lease.delete()
    return "the results are saved and the lease is ended"


def read_state(file: Path) -> CheckState | None:
    """Return the state of the last check; None if there is none or it cannot be read."""
    try:
        return CheckState(**json.loads(file.read_text()))
    except (OSError, TypeError, ValueError):
        return None


def write_state(file: Path, state: CheckState) -> None:
    """Write the state atomically."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new_file = file.with_suffix(".new")
    new_file.write_text(json.dumps(asdict(state)))
    new_file.replace(file)


def check_setup(settings: Settings, node: Node, lease: Lease) -> str:
    """Check that this node can read the lease and reach the target; return the result as text. Raises CheckFailed."""
    status = lease.status()
    if status is None:
        raise CheckFailed("blazar does not have this lease")
    if settings.results_to:
        settings.results.mkdir(parents=True, exist_ok=True)
        run(rsync_command(settings, "--dry-run"), SAVE_LIMIT_S)
    node.marks()
    return f"the lease is {status} and can be ended from this node"


def main(options: Sequence[str]) -> None:
    """Check once; with --try-out, only check that this node can end the lease, and exit with the error if it cannot."""
    settings = Settings(**json.loads(SETTINGS.read_text()))
    node, lease = Node(settings), Lease(settings)
    if "--try-out" in options:
        try:
            print(check_setup(settings, node, lease))
        except CheckFailed as problem:
            sys.exit(str(problem))
        return
    state, line = check(settings, node, lease, read_state(STATE), read_clock())
    write_state(STATE, state)
    print(line)


if __name__ == "__main__":
    main(sys.argv[1:])
