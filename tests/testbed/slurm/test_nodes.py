"""Rows of two nodes as jobs of a real Slurm, over a real sshd: real ones with tiny models, and fakes that fail."""

import re
import threading
import time
from typing import Any

import psutil
import pytest

from experiments.results.run_folder import RunFolder
from experiments.results.schema import LOG_FILE, PROGRESS_FILE, Result
from experiments.runners.plan import plan
from experiments.runners.slurm.cluster import Cluster as Rows
from experiments.runners.slurm.runner import SlurmRunner
from experiments.suites.suite import suite_named
from experiments.system.processes import find_tagged
from tests.support.processes.waiting import wait_for
from tests.support.results import in_memory
from tests.support.runners.fake_view import RecordingView
from tests.support.runners.rows import rows_to_run
from tests.support.training import fake_rank_worker, tiny_rows
from tests.testbed.slurm.conftest import profile_of

SUITE = "slurm_hf_trainer"
SETTINGS: dict[str, Any] = {"nodes": 2, "devices": 1, "strategy": "ddp"}
GRACE_S = 30.0


class TwoNodeHarness:
    """Runs of rows on both nodes; all their processes have the variable ``mark``."""

    def __init__(self, path, cluster, shell) -> None:
        self.path, self.cluster, self._shell = path, cluster, shell
        self.mark = path.name
        self.view = RecordingView()

    def fake_ranks(self, fault="", **settings) -> Result:
        """Run a row of fake ranks, the second of which gets the fault."""
        spec = tiny_rows.spec(**SETTINGS | {"time_limit_s": 150} | settings)
        variables = {"TESTBED_TEST": self.mark} | ({"FAULT": fault} if fault else {})
        folder = self._folder(in_memory.run("a", run_id=self.mark))
        self._runner(folder, variables, fake_rank_worker.MODULE).run(rows_to_run(spec))
        self.row = folder.row_folder_named("a")
        return folder.results()["a"]

    def run_tiny_models(self, *rows) -> dict[str, Result]:
        """Run rows of the suite with tiny models, with one rank on each node."""
        size = {"size": "tiny", "length": "peak", "weights": "random", "data": "synthetic", "gpus_per_node": 1}
        run = in_memory.run(*rows, suite=SUITE, card="v100_32gb", run_id=self.mark, **size)
        folder = self._folder(run)
        runner = self._runner(folder, {"TESTBED_TEST": self.mark}, "experiments.training.worker")
        runner.run(plan(suite_named(SUITE), run, folder))
        return folder.results()

    def hosts(self) -> set[str]:
        """Return the nodes on which processes of the rows run."""
        return {
            node
            for node in self.cluster.nodes
            if set(self.running_processes()) & set(find_tagged("SLURMD_NODENAME", node))
        }

    def running_processes(self) -> list[psutil.Process]:
        return find_tagged("TESTBED_TEST", self.mark)

    def progress(self) -> int:
        """Return how many ranks have begun to train."""
        return len(list(self.cluster.home.glob(f"llm-testbed/{self.mark}/lab/a/rank-*/{PROGRESS_FILE}")))

    def _folder(self, run) -> RunFolder:
        folder = RunFolder(self.path)
        folder.write_run(run)
        return folder

    def _runner(self, folder, variables, worker) -> SlurmRunner:
        rows = Rows(self._shell, profile_of(self.cluster, **variables))
        return SlurmRunner(folder, rows, self.view, worker, GRACE_S)


@pytest.fixture
def harness(cluster, shell, tmp_path):
    made = TwoNodeHarness(tmp_path, cluster, shell)
    yield made
    wait_for(lambda: not made.running_processes(), 15)
    wait_for(lambda: cluster.states() == ["idle"] * 2, 60)


def test_real_rows_train_on_two_nodes_with_torchrun_and_with_accelerate(harness):
    found = harness.run_tiny_models("neo-8gpu-ddp", "neo-8gpu-fsdp")
    assert {row: result.reason for row, result in found.items() if result.outcome != "fits"} == {}
    assert [len(result.ranks) for result in found.values()] == [2, 2]
    assert [result.spec.settings.launcher for result in found.values()] == ["torchrun", "accelerate"]


def test_a_rank_killed_on_the_second_node_is_the_outcome_of_the_row_and_ends_both_nodes(harness):
    watching = threading.Thread(target=lambda: wait_for(lambda: harness.hosts() == set(harness.cluster.nodes), 120))
    watching.start()
    result = harness.fake_ranks("killed")
    watching.join()
    assert (result.outcome, result.failure.kind, result.failure.rank) == ("error", "signal 9", 1)
    assert result.reason.startswith("rank 1: signal 9 last seen in the backward pass of step 1 (counted from 0)")
    fault_at = float(re.search(r"fault injected at ([\d.]+)", (harness.row / LOG_FILE).read_text())[1])
    assert time.time() - fault_at < 15
    assert harness.running_processes() == []


def test_a_hanging_row_ends_at_its_time_limit_with_the_stack_traces_of_both_nodes(harness):
    result = harness.fake_ranks("hang", time_limit_s=60)
    assert [rank.outcome for rank in result.ranks] == ["timeout"] * 2
    first, second = (harness.row / LOG_FILE).read_text().split("==== rank 1 ====")
    assert "in all_reduce" in first
    assert "in hang" in second


def test_if_the_second_node_dies_the_row_ends_with_an_error_that_names_it(harness):
    second = harness.cluster.nodes[1]

    def die() -> None:
        wait_for(lambda: harness.progress() == 2, 120)
        harness.cluster.kill_node(second)

    dying = threading.Thread(target=die)
    dying.start()
    result = harness.fake_ranks("hang")
    dying.join()
    harness.cluster.start_node(second)
    assert (result.outcome, result.failure.kind, result.failure.rank) == ("error", "node lost", 1)
    assert result.reason.endswith(f"node 1 ({second}) lost its connection")
