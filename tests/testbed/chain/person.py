"""Somebody who has a lease at the testbed in a box and types commands, each a process that can be struck."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from experiments.results.schema import RESULT_FILE
from experiments.runners.targets import FOLDER
from provision.ssh.login import USER
from tests.support.waiting import hear_interrupts
from tests.testbed.chain.rehearse import Stage
from tests.testbed.node.node import Node
from tests.testbed.openstack.gate import Gate

SUITE = "single_gpu_blip2"
THERE = f"/home/{USER}/{FOLDER}"
HOUSE = Path(__file__).resolve().parents[3]
SAID_S = 1500.0
LOOK_S = 0.1


class Command:
    """A command that runs; what it says so far is in ``log``."""

    def __init__(self, log: Path, command: list[str]) -> None:
        self._log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                command,
                cwd=HOUSE,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                preexec_fn=hear_interrupts,
            )

    @property
    def said(self) -> str:
        return self._log.read_text()

    def until(self, pattern: str) -> str:
        """Wait until it says so; what it said."""
        ends = time.monotonic() + SAID_S
        while not (found := re.search(pattern, self.said)):
            assert self._process.poll() is None, f"ended before it said {pattern!r}:\n{self.said}"
            assert time.monotonic() < ends, f"does not say {pattern!r}:\n{self.said}"
            time.sleep(LOOK_S)
        return found[0]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def end(self) -> int:
        """Its exit code, when it has ended by itself."""
        return self._process.wait(SAID_S)


class Person:
    """Has the box's account, the ledger and the key of ``stage``; the rows' results come into ``results``."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.results = stage, stage.folder / "results"
        self._commands: list[Command] = []

    @property
    def node(self) -> Node:
        (node,) = self.stage.machines.nodes.values()
        return node

    @property
    def line(self) -> Gate:
        """The only way to the node."""
        (gate,) = self.stage.machines.gates.values()
        return gate

    def reproduces(self, *more: str) -> Command:
        return self._types(self.stage.client(self.results, *more))

    def runs(self, run_id: str, *rows: str) -> Command:
        """`testbed run` of miniature rows on the leased node."""
        named = [part for row in rows for part in ("--row", row)]
        options = ["--site", "chameleon", "--size", "tiny", "--no-predict", "--results", str(self.results)]
        return self.types("run", SUITE, *named, *options, "--run-id", run_id)

    def types(self, *arguments: str) -> Command:
        return self._types([sys.executable, "-m", "experiments", *arguments])

    def outcomes(self, run_id: str) -> dict[str, str]:
        found = (self.results / run_id).glob(f"*/*/{RESULT_FILE}")
        return {path.parent.name: json.loads(path.read_text())["outcome"] for path in found}

    def starts(self, run_id: str) -> list[str]:
        """The rows of all jobs that were begun on the node for that run, one a job."""
        tags = self.node.run("sh", "-c", f"ls -d {THERE}/{run_id}/.jobs/*/started 2> /dev/null || true")
        return sorted(Path(tag).parent.name.rpartition("-")[0] for tag in tags.split())

    def containers(self, node: Node | None = None) -> list[str]:
        return (node or self.node).run("docker", "ps", "--quiet").split()

    def ends(self) -> None:
        """End whatever was typed and goes on, and the jobs of it."""
        for command in self._commands:
            command.kill()
        for node in self.stage.machines.nodes.values():
            node.run("sh", "-c", f"! command -v scancel > /dev/null || scancel --user {USER}")

    def _types(self, command: list[str]) -> Command:
        log = self.stage.folder / f"said-{len(self._commands)}.txt"
        self._commands.append(Command(log, command))
        return self._commands[-1]
