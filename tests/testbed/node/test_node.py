"""A node behaves like a separate machine and leaves nothing behind."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from provision.ssh.login import KeyPair, Login
from tests.testbed.node import network
from tests.testbed.node.image import NodeImage
from tests.testbed.node.node import CGROUPS, Node

LoginTo = Callable[[Node], Login]


def output_of(login: Login, command: str) -> str:
    return subprocess.run([*login.arguments(), command], check=True, capture_output=True, text=True).stdout.strip()


def leftovers(name: str) -> list[str]:
    """Return what is left of a node and of the network of nodes: firewall rules, links, control groups, processes."""
    rules = subprocess.run(["iptables-save"], check=True, capture_output=True, text=True).stdout
    links = os.listdir("/sys/class/net")
    groups = [str(path) for path in CGROUPS.rglob(f"testbed-{name}")]
    processes = subprocess.run(["pgrep", "--full", f"machine={name}"], capture_output=True, text=True).stdout.split()
    of_network = [line for line in rules.splitlines() if network.BRIDGE in line]
    return [*of_network, *(link for link in links if link == network.BRIDGE), *groups, *processes]


def test_a_fake_node_has_systemd_an_address_sudo_and_access_to_the_internet(node: Node, login: LoginTo) -> None:
    assert output_of(login(node), "hostname; sudo id -un; cat /proc/1/comm") == f"{node.name}\nroot\nsystemd"
    assert node.address in output_of(login(node), "ip -brief address")
    assert output_of(login(node), "sudo apt-get update -q >/dev/null && echo had") == "had"


def test_a_node_shows_its_fake_gpus(node: Node, login: LoginTo) -> None:
    assert output_of(login(node), "nvidia-smi -L").count("A100") == 2
    assert output_of(login(node), "ls /dev/nvidia?").split() == ["/dev/nvidia0", "/dev/nvidia1"]


def test_a_node_keeps_its_files_after_a_reboot(node: Node, login: LoginTo) -> None:
    boot = output_of(login(node), "touch kept; cat /proc/sys/kernel/random/boot_id")
    node.reboot()
    node.wait(login(node))
    assert output_of(login(node), "ls kept") == "kept"
    assert output_of(login(node), "cat /proc/sys/kernel/random/boot_id") != boot


def test_nodes_reach_each_other(node: Node, node_image: NodeImage, key: KeyPair, login: LoginTo) -> None:
    with Node("test-other", "10.78.0.22", node_image, key.public) as other:
        other.wait(login(other))
        assert "SSH" in output_of(login(node), f"timeout 5 bash -c 'head -1 < /dev/tcp/{other.address}/22'")


def test_a_node_ends_with_the_process_that_started_it_and_the_next_node_removes_its_files(
    killed_holder: Path, node_image: NodeImage, key: KeyPair, login: LoginTo
) -> None:
    subprocess.run([sys.executable, killed_holder, "test-killed", "10.78.0.23"], check=False)
    with Node("test-killed", "10.78.0.23", node_image, key.public) as again:
        again.wait(login(again))
    assert not [one for one in leftovers("test-killed") if "test-killed" in one]
    assert not again.root.exists()
