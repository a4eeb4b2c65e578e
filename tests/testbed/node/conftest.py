"""Fixtures for test nodes: their images, logins and configuration."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from provision.configure.playbook import ConfigurationResult, Setup, configure
from provision.leasing.journal import Machine
from provision.ssh.login import KeyPair, Login, forget_host_key
from tests.support.needs import need
from tests.testbed.node import gpus
from tests.testbed.node.fake_image import fake_image
from tests.testbed.node.gpus import A100
from tests.testbed.node.image import NodeImage
from tests.testbed.node.node import TEST_NODE_VARIABLES, Node

NODE_FOLDER = Path(__file__).parent
NEEDS = ("mmdebstrap", "gpg", "systemd-nspawn", "iptables", "ip", "ssh-keygen")
PACKAGES = "mmdebstrap gpg systemd-container iptables iproute2 openssh-client"
SetUp = Callable[..., ConfigurationResult]


@pytest.fixture(scope="session")
def node_image() -> NodeImage:
    need(NEEDS, PACKAGES, root=True)
    return NodeImage.make(print)


@pytest.fixture(scope="session")
def login(key: KeyPair, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Node], Login]:
    known_hosts = tmp_path_factory.mktemp("nodes") / "known_hosts"
    return lambda node: Login(node.address, node.name, key.file, known_hosts)


@pytest.fixture(scope="session")
def archive(node_image: NodeImage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an archive of the fake image."""
    return fake_image(node_image.root, "llm-testbed:current", tmp_path_factory.mktemp("image") / "small.tar")


@pytest.fixture(scope="module")
def node(node_image: NodeImage, key: KeyPair, login: Callable[[Node], Login], archive: Path) -> Iterator[Node]:
    """Start a node with two fake GPUs and wait until it answers."""
    with Node("test-node", "10.78.0.21", node_image, key.public, [A100, A100], shared=[archive]) as started:
        started.wait(login(started))
        yield started
    forget_host_key(started.name, login(started).known_hosts)


@pytest.fixture(scope="session")
def set_up(login: Callable[[Node], Login], archive: Path, tmp_path_factory: pytest.TempPathFactory) -> SetUp:
    """Configure nodes as `testbed configure` does, with the fake image; roles: run only these."""
    spec = tmp_path_factory.mktemp("cdi") / "nvidia.json"
    spec.write_text(gpus.cdi_spec(2))
    logs = tmp_path_factory.mktemp("configure")

    def operation(
        nodes: Sequence[Node],
        say: Callable[[str], None] = print,
        check: bool = False,
        roles: Sequence[str] = (),
        extra: Mapping[str, Any] = {},
        **setup: Any,
    ) -> ConfigurationResult:
        options: dict[str, Any] = {"source": "load", "archive": archive, "cdi_spec": spec} | setup
        machines = [Machine(node.name, login(node)) for node in nodes]
        with pytest.MonkeyPatch.context() as patch:
            if roles:
                patch.setattr("provision.configure.playbook.PLAYBOOK", playbook := logs / "site.yml")
                listed = [{"role": role} for role in roles]
                playbook.write_text(json.dumps([{"hosts": "nodes", "become": True, "roles": listed}]))
            return configure(machines, Setup(**options, extra=TEST_NODE_VARIABLES | dict(extra)), say, check, logs)

    return operation


@pytest.fixture
def killed_holder() -> Path:
    """Return a program that boots the node named by its arguments and is killed before it stops it."""
    return NODE_FOLDER / "killed_holder.py"
