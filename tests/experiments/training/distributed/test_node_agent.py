"""Rows of two nodes; the second is another process that shares only the connection with the first.

Fake: both nodes are this machine. The launchers, their ranks, and the connection between the nodes are real.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import pytest

from experiments.results import rendezvous
from experiments.results.schema import LOG_FILE
from experiments.system.processes import find_tagged
from experiments.training.distributed import ranks
from experiments.training.distributed.ranks import find_interface
from experiments.training.distributed.remote_node import NodeAssignment
from experiments.training.worker import run_row
from tests.support.training.tiny_rows import spec

FAKE = "tests.support.training.fake_rank"
NAMES = {"log.txt", "result.json", "spec.json", "telemetry.csv"}
SETTINGS: dict[str, Any] = {"nodes": 2, "devices": 1, "strategy": "ddp", "time_limit_s": 120}


class SecondNode:
    """The second node: waits for the rendezvous file of the first, then runs its agent."""

    def __init__(self, folder, command=("-m", "experiments.training.distributed.node_agent", "1", "second")) -> None:
        self._folder, self._command = folder, command
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        rendezvous_file = self._folder / rendezvous.RENDEZVOUS_FILE
        while not rendezvous_file.exists():
            time.sleep(0.05)
        environment = {**os.environ, rendezvous.RENDEZVOUS_VARIABLE: rendezvous_file.read_text()}
        with (self._folder / rendezvous.AGENT_LOG_FILE).open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, *self._command], env=environment, stdout=output, stderr=output
            )
            self.code = self.process.wait()
        (self._folder / rendezvous.EXIT_FILE).touch()

    def end(self) -> int:
        self._thread.join(20)
        return self.code


@pytest.fixture
def row(monkeypatch, tmp_path):
    """Run a row, and check that nothing is left on either node."""
    folder = tmp_path / "job"
    folder.mkdir()
    monkeypatch.setattr(ranks, "RANK_MODULE", FAKE)
    for name, value in {
        rendezvous.FOLDER_VARIABLE: str(folder),
        rendezvous.ADDRESS_VARIABLE: "127.0.0.1",
        "TESTBED_TEST": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)

    def run(fault=None, command=None, meanwhile=lambda second: None, **settings):
        if fault:
            monkeypatch.setenv("FAULT", fault)
        second = SecondNode(folder, *([command] if command else []))
        threading.Thread(target=meanwhile, args=(second,), daemon=True).start()
        result = run_row(spec(**SETTINGS | settings), tmp_path / "row", "the command")
        made.code = second.end()
        assert find_tagged("TESTBED_TEST", str(tmp_path)) == []
        assert {path.name for path in (tmp_path / "row").iterdir()} == NAMES
        return result

    made: Any = run
    return made


def wait_for_both_ranks(out) -> None:
    """Wait until both ranks have taken a step."""
    while not all((out / f"rank-{rank}" / "progress.json").exists() for rank in (0, 1)):
        time.sleep(0.05)


def test_ranks_on_another_node_are_part_of_the_row_s_result_and_log(row, tmp_path):
    result = row()
    assert [(rank.rank, rank.outcome) for rank in result.ranks] == [(0, "fits"), (1, "fits")]
    assert result.losses == (0.5,) * 3
    assert "==== rank 1 ====" in (tmp_path / "row" / LOG_FILE).read_text()
    assert row.code == 0


@pytest.mark.usefixtures("ranks_start_warm")
def test_a_killed_rank_on_a_node_without_shared_files_ends_all_ranks(row, monkeypatch):
    assignment = NodeAssignment
    monkeypatch.setattr(ranks, "NodeAssignment", lambda **fields: assignment(**fields | {"out": "/not shared"}))
    result = row("killed")
    assert (result.outcome, result.failure.kind, result.failure.rank) == ("error", "signal 9", 1)
    assert result.reason.startswith("rank 1: signal 9 last seen in the backward pass of step 1 (counted from 0)")
    assert result.ranks[0].outcome == "error"


@pytest.mark.usefixtures("ranks_start_warm")
def test_a_row_whose_node_is_lost_ends_with_an_error_that_names_the_node(row, tmp_path):
    def kill(second) -> None:
        wait_for_both_ranks(tmp_path / "row")
        with suppress(ProcessLookupError):
            os.kill(second.process.pid, signal.SIGKILL)

    result = row("hang", meanwhile=kill)
    assert (result.outcome, result.failure.kind, result.failure.rank) == ("error", "node lost", 1)
    assert result.reason.endswith("node 1 (second) lost its connection")


def test_a_row_whose_node_cannot_start_ends_with_an_error_that_shows_the_output_of_the_node(row):
    result = row(command=("-c", "import sys; sys.exit('no such image')"))
    assert (result.failure.kind, result.failure.rank) == ("node lost", 1)
    assert result.reason.endswith("node 1 ended without connecting: no such image")


def test_the_network_interface_is_the_one_that_reaches_the_address():
    assert find_interface("127.0.0.1") == "lo"
