"""Two nodes become one Slurm cluster."""

import subprocess
from collections.abc import Callable, Iterator

import pytest

from provision.configure.playbook import ConfiguredNode
from provision.ssh.login import KeyPair, Login
from tests.testbed.node.conftest import SetUp
from tests.testbed.node.gpus import A100
from tests.testbed.node.image import NodeImage
from tests.testbed.node.node import Node

ROLES = ["precheck", "nvidia_driver", "slurm"]
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
def cluster(nodes: list[Node], set_up: SetUp) -> ConfiguredNode:
    return set_up(nodes, roles=ROLES)


@pytest.mark.parametrize("where", [0, 1])
def test_a_job_of_two_nodes_runs_on_both_with_their_gpus(
    where: int, nodes: list[Node], login: Callable[[Node], Login], cluster: ConfiguredNode
) -> None:
    asked = "srun --immediate=60 --nodes=2 --gres=gpu:a100:2 sh -c 'echo $(hostname) $USER $CUDA_VISIBLE_DEVICES'"
    done = subprocess.run([*login(nodes[where]).arguments(), asked], check=True, capture_output=True, text=True)
    assert sorted(done.stdout.splitlines()) == ["test-first cc 0,1", "test-second cc 0,1"]


def test_the_nodes_share_a_key_that_is_in_no_log(nodes: list[Node], cluster: ConfiguredNode) -> None:
    first, second = (node.run(*KEY) for node in nodes)
    assert first == second
    assert first not in cluster.log.read_text()


def test_a_second_run_on_two_nodes_changes_nothing(nodes: list[Node], set_up: SetUp, cluster: ConfiguredNode) -> None:
    assert set_up(nodes, roles=ROLES).changed == ()
