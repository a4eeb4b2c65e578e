"""A node for the tests of this folder, and how it is logged in to."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from provision.ssh import KeyPair, Login
from tests.testbed.node.gpus import A100
from tests.testbed.node.image import NodeImage
from tests.testbed.node.node import Node


@pytest.fixture(scope="session")
def node_image() -> NodeImage:
    return NodeImage.make(print)


@pytest.fixture(scope="session")
def login(key: KeyPair, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Node], Login]:
    known_hosts = tmp_path_factory.mktemp("nodes") / "known_hosts"
    return lambda node: Login(node.address, node.name, key.file, known_hosts)


@pytest.fixture(scope="module")
def node(node_image: NodeImage, key: KeyPair, login: Callable[[Node], Login]) -> Iterator[Node]:
    """A node with two pretended GPUs that answers."""
    with Node("test-node", "10.78.0.21", node_image, key.public, [A100, A100]) as started:
        started.wait(login(started))
        yield started


@pytest.fixture
def killed_holder() -> Path:
    """A program that boots the node named by its arguments and is killed before it can stop it."""
    return Path(__file__).with_name("killed_holder.py")
