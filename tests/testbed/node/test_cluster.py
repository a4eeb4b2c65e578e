"""Two nodes become one Slurm cluster."""

import subprocess
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import pairwise
from statistics import median

import pytest

from provision.configure.playbook import ConfigurationResult
from provision.ssh.login import KeyPair, Login
from tests.support.processes.waiting import wait_for
from tests.testbed.node.conftest import SetUp
from tests.testbed.node.gpus import A100
from tests.testbed.node.image import NodeImage
from tests.testbed.node.node import Node

ROLES = ["precheck", "nvidia_driver", "slurm"]
LONGEST_GAP_S = 3
KEY = ("base64", "--wrap=0", "/etc/munge/munge.key")


@pytest.fixture(scope="module")
def nodes(node_image: NodeImage, key: KeyPair, login: Callable[[Node], Login]) -> Iterator[list[Node]]:
    """Start two nodes with two fake GPUs each."""
    with (
        Node("test-first", "10.78.0.25", node_image, key.public, [A100, A100]) as first,
        Node("test-second", "10.78.0.26", node_image, key.public, [A100, A100]) as second,
    ):
        for node in (first, second):
            node.wait(login(node))
        yield [first, second]


@pytest.fixture(scope="module")
def cluster(nodes: list[Node], set_up: SetUp) -> ConfigurationResult:
    return set_up(nodes, roles=ROLES)


@pytest.mark.parametrize("where", [0, 1])
def test_a_job_of_two_nodes_runs_on_both_with_their_gpus(
    where: int, nodes: list[Node], login: Callable[[Node], Login], cluster: ConfigurationResult
) -> None:
    asked = "srun --immediate=60 --nodes=2 --gres=gpu:a100:2 sh -c 'echo $(hostname) $USER $CUDA_VISIBLE_DEVICES'"
    done = subprocess.run([*login(nodes[where]).arguments(), asked], check=True, capture_output=True, text=True)
    assert sorted(done.stdout.splitlines()) == ["test-first cc 0,1", "test-second cc 0,1"]


def test_the_nodes_share_a_key_that_is_in_no_log(nodes: list[Node], cluster: ConfigurationResult) -> None:
    first, second = (node.run(*KEY) for node in nodes)
    assert first == second
    assert first not in cluster.log.read_text()


def test_a_second_run_of_the_playbook_on_two_nodes_changes_nothing(
    nodes: list[Node], set_up: SetUp, cluster: ConfigurationResult
) -> None:
    assert set_up(nodes, roles=ROLES).changed == ()


def on_first(nodes: list[Node], login: Callable[[Node], Login], command: str) -> "subprocess.CompletedProcess[str]":
    """Run a command on the first node as its user."""
    return subprocess.run([*login(nodes[0]).arguments(), command], capture_output=True, text=True)


@pytest.mark.parametrize("impossible", ["--ntasks=100000", "--nodes=3", "--gres=gpu:3 --nodes=1", "--mem=100000G"])
def test_a_job_that_the_nodes_can_never_run_is_rejected(
    impossible: str, nodes: list[Node], login: Callable[[Node], Login], cluster: ConfigurationResult
) -> None:
    done = on_first(nodes, login, f"sbatch --output=/dev/null --wrap=true {impossible}")
    assert done.returncode, done.stdout
    assert "Batch job submission failed" in done.stderr


def test_a_waiting_job_starts_soon_after_the_previous_job(
    nodes: list[Node], login: Callable[[Node], Login], cluster: ConfigurationResult
) -> None:
    submit = "sbatch --exclusive --nodes=2 --output=/dev/null --job-name=waiting --wrap=true"
    assert on_first(nodes, login, "; ".join([submit] * 6)).returncode == 0
    left = "squeue --noheader --name=waiting"
    wait_for(lambda: not on_first(nodes, login, left).stdout)
    starts = on_first(nodes, login, f"{left} --states=all --format=%S").stdout.split()
    seconds = sorted(datetime.fromisoformat(start).timestamp() for start in starts)
    assert median(after - before for before, after in pairwise(seconds)) <= LONGEST_GAP_S
