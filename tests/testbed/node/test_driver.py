"""The driver's role. Fakes: the driver and its package. Real: apt, reboots, and the role's reactions."""

import hashlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from provision.errors import ConfigureFailed
from provision.ssh.login import KeyPair, Login
from tests.testbed.node import gpus
from tests.testbed.node.conftest import SetUp
from tests.testbed.node.image import NodeImage
from tests.testbed.node.node import Node

ROLE = {"roles": ["nvidia_driver"]}
ARCHIVE = "var/lib/pretended"
WORKS_AFTER_REBOOT = (
    f"cd {gpus.STATE}; echo fine > mode; echo {gpus.DRIVER} > driver; cp /proc/sys/kernel/random/boot_id since"
)


BASE = "pytorch/pytorch:2.13.0-cuda{}-cudnn9-devel"
OLD_DRIVER = "560.35.03"


def role_variables(package: str, wanted: str = "true", cuda: str = "13.0") -> dict[str, object]:
    base = {"images_base": BASE.format(cuda)}
    return {**ROLE, "extra": {"nvidia_driver_wanted": wanted, "nvidia_driver_packages": [package], **base}}


def offer(root: Path, package: str, operation: str) -> str:
    """Offer a package in the apt repository that installs nvidia-smi and runs ``operation``; return its entry."""
    folder = root / ARCHIVE / package
    (folder / "DEBIAN").mkdir(parents=True)
    (folder / "usr/bin").mkdir(parents=True)
    (folder / "usr/bin/nvidia-smi").write_bytes(gpus.SMI.read_bytes())
    (folder / "usr/bin/nvidia-smi").chmod(0o755)
    control = f"Package: {package}\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: a fake\n"
    (folder / "DEBIAN/control").write_text(control)
    (folder / "DEBIAN/postinst").write_text(f"#!/bin/sh\n{operation}\n")
    (folder / "DEBIAN/postinst").chmod(0o755)
    deb = folder.with_suffix(".deb")
    subprocess.run(["dpkg-deb", "--build", folder, deb], check=True, capture_output=True)
    data = deb.read_bytes()
    return f"{control}Filename: ./{deb.name}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n"


@pytest.fixture(scope="module")
def machine(node_image: NodeImage, key: KeyPair, login: Callable[[Node], Login]) -> Iterator[Node]:
    """Start a node whose apt repository has a driver that works after a reboot, and one that never works."""
    with Node("test-driver", "10.78.0.24", node_image, key.public, [gpus.A100, gpus.A100]) as started:
        started.wait(login(started))
        entries = [offer(started.root, "good-driver", WORKS_AFTER_REBOOT), offer(started.root, "bad-driver", ":")]
        (started.root / ARCHIVE / "Packages").write_text("\n".join(entries))
        source = started.root / "etc/apt/sources.list.d/pretended.list"
        source.write_text(f"deb [trusted=yes] file:/{ARCHIVE} ./\n")
        started.run("apt-get", "update", "-o", f"Dir::Etc::sourcelist={source.relative_to(started.root)}")
        yield started


@pytest.fixture
def driver_in_state(machine: Node) -> "DriverInState":
    """Bring the machine's driver into a state; return the id of the current boot."""

    def operation(mode: gpus.Mode, driver: str = gpus.DRIVER) -> str:
        machine.run("apt-get", "purge", "--yes", "good-driver", "bad-driver")
        gpus.install_fake_gpus(machine.root, mode=mode, driver=driver)
        return boot(machine)

    return operation


def boot(node: Node) -> str:
    return node.run("cat", "/proc/sys/kernel/random/boot_id")


DriverInState = Callable[..., str]


def test_a_working_driver_is_not_changed(machine: Node, set_up: SetUp, driver_in_state: DriverInState) -> None:
    before = driver_in_state("fine")
    assert set_up([machine], **role_variables("good-driver")).changed == ()
    assert boot(machine) == before


@pytest.mark.parametrize("mode", ["missing", "broken"])
def test_if_the_driver_is_missing_or_broken_a_driver_is_installed_and_the_machine_reboots(
    mode: gpus.Mode, machine: Node, set_up: SetUp, driver_in_state: DriverInState
) -> None:
    before = driver_in_state(mode)
    changed = " ".join(set_up([machine], **role_variables("good-driver")).changed)
    assert "Install the driver" in changed
    assert "Reboot to load the driver" in changed
    assert boot(machine) != before
    assert machine.run("nvidia-smi", "-L").count("A100") == 2
    assert set_up([machine], **role_variables("good-driver")).changed == ()


def test_a_driver_that_works_but_is_too_old_for_the_image_is_replaced(
    machine: Node, set_up: SetUp, driver_in_state: DriverInState
) -> None:
    before = driver_in_state("fine", OLD_DRIVER)
    assert set_up([machine], **role_variables("good-driver", cuda="12.4")).changed == ()
    assert "Install the driver" in " ".join(set_up([machine], **role_variables("good-driver")).changed)
    assert boot(machine) != before
    assert set_up([machine], **role_variables("good-driver")).changed == ()


def test_a_driver_that_is_still_too_old_is_named_with_the_requirement_of_the_image(
    machine: Node, set_up: SetUp, driver_in_state: DriverInState
) -> None:
    driver_in_state("fine", OLD_DRIVER)
    with pytest.raises(ConfigureFailed, match=rf"the driver is {OLD_DRIVER}; .*cuda13.0.* needs 580.*--base-image"):
        set_up([machine], **role_variables("bad-driver", "false"))


def test_a_driver_newer_than_the_loaded_one_needs_only_a_reboot(
    machine: Node, set_up: SetUp, driver_in_state: DriverInState
) -> None:
    before = driver_in_state("broken")
    machine.run("apt-get", "install", "--yes", "good-driver")
    with pytest.raises(RuntimeError, match="Driver/library version mismatch"):
        machine.run("nvidia-smi")
    changed = " ".join(set_up([machine], **role_variables("good-driver")).changed)
    assert "Install the driver" not in changed
    assert boot(machine) != before
    assert machine.run("nvidia-smi", "-L").count("A100") == 2


def test_a_driver_that_still_fails_is_reported_with_a_fix(
    machine: Node, set_up: SetUp, driver_in_state: DriverInState
) -> None:
    driver_in_state("broken")
    with pytest.raises(ConfigureFailed, match=r"Check that the driver works .*couldn't communicate .*dmesg"):
        set_up([machine], **role_variables("bad-driver"))


def test_a_run_in_check_mode_says_that_a_driver_would_be_installed_and_does_not_reboot(
    machine: Node, set_up: SetUp, driver_in_state: DriverInState
) -> None:
    before = driver_in_state("missing")
    assert "Install the driver" in " ".join(set_up([machine], check=True, **role_variables("good-driver")).changed)
    assert boot(machine) == before


@pytest.mark.parametrize("wanted", ["false", "auto"])
def test_no_driver_is_installed_on_a_machine_without_a_gpu_or_where_it_is_unwanted(
    wanted: str, machine: Node, set_up: SetUp, driver_in_state: DriverInState
) -> None:
    driver_in_state("missing")
    assert set_up([machine], **role_variables("good-driver", wanted)).changed == ()
