"""Rows of two nodes, the second of which is another process that sees nothing of the first one's folder but its line.

Stub: both are this machine. The launchers, what they start, and the line between the nodes are real.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

from experiments.results import rendezvous
from experiments.results.schema import LOG_FILE
from experiments.system.processes import tagged_processes
from experiments.training.distributed import ranks, remote_node
from experiments.training.distributed.ranks import interface_to
from experiments.training.worker import run_row
from tests.support.trainings import spec

FAKE = "tests.support.fake_rank"
NAMES = {"log.txt", "result.json", "spec.json", "telemetry.csv"}
SETTINGS = {"nodes": 2, "devices": 1, "strategy": "ddp", "time_limit_s": 120}


class Second:
    """The second node: waits for the first to say where it is met, then takes part."""

    def __init__(self, folder, command=("-m", "experiments.training.distributed.node_agent", "1", "second")) -> None:
        self._folder, self._command = folder, command
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        meeting = self._folder / rendezvous.RENDEZVOUS_FILE
        while not meeting.exists():
            time.sleep(0.05)
        environment = {**os.environ, rendezvous.RENDEZVOUS: meeting.read_text()}
        with (self._folder / rendezvous.LOG_FILE).open("w") as said:
            self.process = subprocess.Popen([sys.executable, *self._command], env=environment, stdout=said, stderr=said)
            self.code = self.process.wait()
        (self._folder / rendezvous.EXIT_FILE).touch()

    def end(self) -> int:
        self._thread.join(20)
        return self.code


@pytest.fixture
def row(monkeypatch, tmp_path):
    """Runs a row; nothing of it is left on either node."""
    folder = tmp_path / "job"
    folder.mkdir()
    monkeypatch.setattr(ranks, "TRAINER", FAKE)
    for name, value in {
        rendezvous.FOLDER: str(folder),
        rendezvous.ADDRESS: "127.0.0.1",
        "TESTBED_TEST": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)

    def run(fault=None, command=None, meanwhile=lambda second: None, **settings):
        if fault:
            monkeypatch.setenv("FAULT", fault)
        second = Second(folder, *([command] if command else []))
        threading.Thread(target=meanwhile, args=(second,), daemon=True).start()
        result = run_row(spec(**SETTINGS | settings), tmp_path / "row", "the command")
        run.code = second.end()
        assert tagged_processes("TESTBED_TEST", str(tmp_path)) == []
        assert {path.name for path in (tmp_path / "row").iterdir()} == NAMES
        return result

    return run


def begun(out) -> None:
    """Wait until both ranks have taken a step."""
    while not all((out / f"rank-{rank}" / "progress.json").exists() for rank in (0, 1)):
        time.sleep(0.05)


def test_ranks_of_another_node_are_part_of_the_result_and_of_the_log(row, tmp_path):
    result = row()
    assert [(rank.rank, rank.outcome) for rank in result.ranks] == [(0, "fits"), (1, "fits")]
    assert result.losses == (0.5,) * 3
    assert "==== rank 1 ====" in (tmp_path / "row" / LOG_FILE).read_text()
    assert row.code == 0


def test_a_rank_killed_on_a_node_that_shares_nothing_is_the_outcome_and_ends_all(row, monkeypatch):
    order = remote_node.NodeAssignment
    monkeypatch.setattr(remote_node, "NodeAssignment", lambda **told: order(**told | {"out": "/not shared"}))
    result = row("killed")
    assert (result.outcome, result.failure.kind, result.failure.rank) == ("error", "signal 9", 1)
    assert result.reason.startswith("rank 1: signal 9 last seen in the backward of step 1")
    assert result.ranks[0].outcome == "error"


def test_a_node_that_is_lost_is_the_outcome(row, tmp_path):
    def kill(second) -> None:
        begun(tmp_path / "row")
        with suppress(ProcessLookupError):
            os.kill(second.process.pid, signal.SIGKILL)

    result = row("hang", meanwhile=kill)
    assert (result.outcome, result.failure.kind, result.failure.rank) == ("error", "node lost", 1)
    assert result.reason.endswith("node 1 (second) is no longer heard of")


def test_a_node_that_cannot_begin_is_the_outcome_with_what_it_said(row):
    result = row(command=("-c", "import sys; sys.exit('no such image')"))
    assert (result.failure.kind, result.failure.rank) == ("node lost", 1)
    assert result.reason.endswith("node 1 did not take part: no such image")


def test_the_interface_is_the_one_that_leads_there():
    assert interface_to("127.0.0.1") == "lo"
