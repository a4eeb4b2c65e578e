"""A user of the local OpenStack cloud, whose commands are processes that can be killed."""

import json
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from experiments.results.schema import RESULT_FILE
from experiments.runners.targets import REMOTE_FOLDER
from provision.ssh.login import USER
from tests.support.processes.waiting import enable_interrupts
from tests.testbed.chain.rehearse import CloudWithNodes
from tests.testbed.node.node import Node
from tests.testbed.openstack.service_proxy import ServiceProxy

SUITE = "single_gpu_blip2"
REMOTE_RUNS = f"/home/{USER}/{REMOTE_FOLDER}"
REPOSITORY = Path(__file__).resolve().parents[3]
OUTPUT_TIMEOUT_S = 1500.0
POLL_INTERVAL_S = 0.1


class Command:
    """A running command with its output in ``log``."""

    def __init__(self, log: Path, command: list[str]) -> None:
        self._log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                preexec_fn=enable_interrupts,
            )

    @property
    def output(self) -> str:
        return self._log.read_text()

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def until(self, pattern: str) -> str:
        """Wait until the output matches; return the match."""
        ends = time.monotonic() + OUTPUT_TIMEOUT_S
        while not (found := re.search(pattern, self.output)):
            assert self.is_running, f"ended before it printed {pattern!r}:\n{self.output}"
            assert time.monotonic() < ends, f"does not print {pattern!r}:\n{self.output}"
            time.sleep(POLL_INTERVAL_S)
        return found[0]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def kill_all(self) -> None:
        """Kill the command together with all processes that it has started."""
        started = psutil.Process(self._process.pid).children(recursive=True)
        self.kill()
        for process in started:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def end(self) -> int:
        """Wait for the end and return the exit code."""
        return self._process.wait(OUTPUT_TIMEOUT_S)


class CliUser:
    """A user with the account, journal and key of ``cloud``; ``results``: folder of the rows' results."""

    def __init__(self, cloud: CloudWithNodes, results: Path | None = None) -> None:
        self.cloud, self.results = cloud, results or cloud.folder / "results"
        self._commands: list[Command] = []

    @property
    def node(self) -> Node:
        (node,) = self.cloud.machines.nodes.values()
        return node

    @property
    def node_proxy(self) -> ServiceProxy:
        """Return the proxy through which the node is reached."""
        (proxy,) = self.cloud.machines.proxies.values()
        return proxy

    def start_reproduce(self, *more: str) -> Command:
        return self._start_command(self.cloud.client(self.results, *more))

    def start_run(self, run_id: str, *rows: str) -> Command:
        """Start `testbed run` of tiny models on the leased node."""
        named = [part for row in rows for part in ("--row", row)]
        options = ["--site", "chameleon", "--size", "tiny", "--no-predict", "--results", str(self.results)]
        return self.start_command("run", SUITE, *named, *options, "--run-id", run_id)

    def start_command(self, *arguments: str) -> Command:
        return self._start_command([sys.executable, "-m", "experiments", *arguments])

    def outcomes(self, run_id: str) -> dict[str, str]:
        found = (self.results / run_id).glob(f"*/*/{RESULT_FILE}")
        return {path.parent.name: json.loads(path.read_text())["outcome"] for path in found}

    def started_rows(self, run_id: str) -> list[str]:
        """Return the row of every job that started on the node for that run."""
        tags = self.node.run("sh", "-c", f"ls -d {REMOTE_RUNS}/{run_id}/.jobs/*/started 2> /dev/null || true")
        return sorted(Path(tag).parent.name.rpartition("-")[0] for tag in tags.split())

    def containers(self, node: Node | None = None) -> list[str]:
        return (node or self.node).run("docker", "ps", "--quiet").split()

    def end_all_commands(self) -> None:
        """End all running commands and their jobs."""
        for command in self._commands:
            command.kill()
        for node in self.cloud.machines.nodes.values():
            node.run("sh", "-c", f"! command -v scancel > /dev/null || scancel --user {USER}")

    def _start_command(self, command: list[str]) -> Command:
        log = self.cloud.folder / f"output-{len(self._commands)}.txt"
        self._commands.append(Command(log, command))
        return self._commands[-1]
