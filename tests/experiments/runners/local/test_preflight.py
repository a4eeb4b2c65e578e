"""The checks of this machine: each missing dependency is named with its fix, and with the commands that need it."""

import json
import shutil
import socket
from types import SimpleNamespace

import psutil
import pytest

from experiments.runners.local import preflight
from experiments.system.files import GIB
from experiments.system.packages import EXTRAS
from provision.checks import abilities_in_words, summary_in_words
from provision.models import Node
from tests.support.runners import rows as sample_rows


@pytest.fixture
def check_named(tmp_path, monkeypatch):
    """Return one check of this machine by its name; no PCI device is a GPU unless the test adds it."""
    monkeypatch.setattr(preflight, "PCI", tmp_path / "pci")
    return lambda name: {one.name: one for one in preflight.check_this_machine(tmp_path)}[name]


def add_nvidia_device(folder):
    device = folder / "pci" / "0000:01:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x030200\n")


def set_gpus_of_machine(monkeypatch, *gpus):
    monkeypatch.setattr(preflight, "this_machine", lambda: Node("", gpus, 8, 64.0, ""))
    monkeypatch.setattr(preflight, "driver_version", lambda: "580.1")


@pytest.fixture
def docker(tmp_path, monkeypatch):
    """Put a fake `docker` on PATH that prints this information, or fails with this error."""

    def install(info=None, error=""):
        program = tmp_path / "bin" / "docker"
        program.parent.mkdir(exist_ok=True)
        end = f"echo '{json.dumps(info)}'" if info else f"echo '{error}' >&2; exit 1"
        program.write_text(f"#!/bin/sh\n{end}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")

    return install


def test_a_missing_compiler_fails_with_its_package(check_named, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    compiler = check_named("C++ compiler")
    assert compiler.status == "failed"
    assert compiler.line.endswith("apt install g++ (needed for predictions, miniatures, full size)")


def test_all_missing_packages_are_named_at_once(check_named, monkeypatch):
    monkeypatch.setitem(EXTRAS, "train", ("json", "nosuch", "other"))
    assert (
        check_named("training packages").text == "nosuch, other missing; make env, or pip install 'llm-testbed[train]'"
    )
    monkeypatch.setitem(EXTRAS, "chameleon", ("nosuch",))
    assert check_named("leasing packages").status == "warning"


def test_a_full_disk_and_a_full_memory_fail(check_named, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=GIB))
    assert check_named("disk").status == "failed"
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=GIB, total=8 * GIB))
    assert check_named("memory").text == "1.0 of 8.0 GiB available, a tiny row needs 1.5 GiB; end other programs"


def test_a_machine_without_a_gpu_gets_a_warning(check_named, monkeypatch):
    set_gpus_of_machine(monkeypatch)
    assert check_named("GPU").status == "warning"


def test_a_gpu_whose_driver_does_not_answer_fails(check_named, monkeypatch, tmp_path):
    set_gpus_of_machine(monkeypatch)
    add_nvidia_device(tmp_path)
    assert (check_named("GPU").status, "driver does not answer" in check_named("GPU").text) == ("failed", True)


def test_a_gpu_is_shown_with_the_cards_whose_rows_it_runs(check_named, monkeypatch):
    set_gpus_of_machine(monkeypatch, sample_rows.GPU)
    monkeypatch.setattr(preflight, "versions", dict)
    gpu = check_named("GPU")
    assert (gpu.status, "driver 580.1" in gpu.text, "a100_80gb" in gpu.text) == ("ok", True, True)
    assert "h100_80gb" not in gpu.text, "no lab has rows for it"
    set_gpus_of_machine(monkeypatch, sample_rows.T4)
    assert "too small for the cards of the labs" in check_named("GPU").text
    monkeypatch.setattr(preflight, "versions", lambda: {"torch": "2.13.0+cpu"})
    assert "PyTorch is built for CPUs only" in check_named("GPU").text


def test_docker_without_daemon_and_without_gpus_is_a_warning(check_named, docker, tmp_path):
    docker(error="Cannot connect to the Docker daemon")
    assert check_named("Docker").line.startswith("warn  Docker: Cannot connect to the Docker daemon; start it")
    docker({"ServerVersion": "29.0", "Runtimes": {"runc": {}}})
    assert check_named("Docker").status == "ok"
    add_nvidia_device(tmp_path)
    assert "install the package nvidia-container-toolkit" in check_named("Docker").text
    docker({"ServerVersion": "29.0", "DiscoveredDevices": [{"ID": "nvidia.com/gpu=0"}]})
    assert check_named("Docker").status == "ok"


def test_rows_in_containers_need_the_package_and_buildx(check_named, docker, monkeypatch):
    docker(error="docker: 'buildx' is not a docker command")
    assert check_named("container tools").line == (
        "warn  container tools: docker buildx builds the image and is not installed; apt install docker-buildx"
        " (needed for rows in containers)"
    )
    docker({"ServerVersion": "29.0"})
    assert check_named("container tools").text == "all 1 installed, docker buildx"
    monkeypatch.setitem(EXTRAS, "container", ("nosuch",))
    assert "pip install 'llm-testbed[container]'" in check_named("container tools").text


def test_a_loopback_interface_without_connections_fails(check_named, monkeypatch):
    def refuse(*_, **__):
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr(socket, "create_connection", refuse)
    assert check_named("ports").status == "failed"


def test_the_summary_names_a_first_command_and_the_rows_that_the_machine_can_run(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "PCI", tmp_path / "pci")
    set_gpus_of_machine(monkeypatch)
    monkeypatch.setitem(EXTRAS, "train", ("nosuch",))
    checks = preflight.check_this_machine(tmp_path)
    assert summary_in_words(checks) == "1 of 12 failed; begin with training packages"
    can = abilities_in_words(checks)
    assert "predictions (see training packages)" in can
    assert "full size (see training packages, GPU)" in can
