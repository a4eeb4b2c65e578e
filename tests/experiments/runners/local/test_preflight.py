"""The checks of this machine: each missing dependency is named with its fix, and with the commands that need it."""

import json
import platform
import shutil
import socket
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from experiments.runners.local import preflight
from experiments.suites.suite import suites_in_group
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


def test_the_check_for_a_missing_compiler_fails_and_names_the_package_to_install(check_named, monkeypatch):
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


def test_the_check_fails_if_the_disk_or_the_memory_is_full(check_named, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=GIB))
    assert check_named("disk").status == "failed"
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=GIB, total=8 * GIB))
    assert check_named("memory").text == "1.0 of 8.0 GiB available, a tiny model needs 1.5 GiB; end other programs"


@pytest.mark.parametrize(("available_gib", "status"), [(1.5, "ok"), (1.49, "failed")])
def test_a_tiny_row_needs_one_and_a_half_gib_of_memory(check_named, monkeypatch, available_gib, status):
    memory = SimpleNamespace(available=available_gib * GIB, total=8 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert check_named("memory").status == status


def test_results_and_cache_need_disk_space_for_all_rows(check_named, monkeypatch, tmp_path):
    rows = sum(len(suite.rows) for suite in suites_in_group("both"))
    needed_gib = 1 + 0.05 * rows
    monkeypatch.setattr(preflight, "cache_folder", lambda: tmp_path / "not" / "yet")
    for free_gib, status in ((needed_gib, "ok"), (needed_gib - 0.001, "failed")):
        usage = SimpleNamespace(free=free_gib * GIB)
        monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: usage)
        assert check_named("disk").status == status
    assert f"{needed_gib:.1f} GiB are needed" in check_named("disk").text
    assert f"GiB free at {tmp_path}, " in check_named("disk").text
    monkeypatch.setattr(preflight, "_free_gib", lambda folder: 99.0 if folder == tmp_path else 0.5)
    assert check_named("disk").status == "failed"


def test_an_operating_system_other_than_linux_and_missing_tools_are_named(check_named, monkeypatch):
    assert check_named("Python").text.endswith(f" in {sys.prefix}")
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert check_named("Python").text == "Darwin is not supported; use Linux, or on Windows its WSL 2"
    assert check_named("git").text == shutil.which("git")
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool in ("git", "ssh-keygen") else f"/bin/{tool}")
    assert check_named("SSH client").line.startswith("warn  SSH client: ssh-keygen missing; apt install openssh-client")
    assert check_named("git").line == "warn  git: git missing; results do not record the commit; apt install git"
    assert check_named("C++ compiler").text == "/bin/c++"


@pytest.mark.usefixtures("check_named")
@pytest.mark.parametrize(
    ("vendor", "kind", "found"),
    [("0x10de", "0x030200", True), ("0x10de", "0x020000", False), ("0x8086", "0x030000", False)],
)
def test_only_a_display_device_of_nvidia_counts_as_a_gpu(tmp_path, vendor, kind, found):
    add_nvidia_device(tmp_path)
    (device,) = (tmp_path / "pci").iterdir()
    (device / "vendor").write_text(f"{vendor}\n")
    (device / "class").write_text(f"{kind}\n")
    assert preflight.has_nvidia_gpu() == found


def test_a_docker_daemon_that_does_not_answer_in_time_is_named(check_named, docker, monkeypatch):
    docker({"ServerVersion": "29.0"})
    assert check_named("Docker").text == "29.0, without GPUs"
    monkeypatch.setattr(preflight, "RESPONSE_TIMEOUT_S", 0.2)
    real, of_docker = subprocess.run, ["sleep", "9"]
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda command, **more: real(of_docker if command[:2] == ["docker", "info"] else command, **more),
    )
    assert check_named("Docker").text == "the daemon does not answer within 0 s; systemctl restart docker"


def test_a_docker_without_a_server_is_named(check_named, docker):
    docker({"Runtimes": {}})
    assert check_named("Docker").text.startswith("the daemon does not answer; start Docker")


def test_a_docker_that_can_use_gpus_is_reported_as_such(check_named, docker, tmp_path):
    add_nvidia_device(tmp_path)
    docker({"ServerVersion": "29.0", "Runtimes": {"nvidia": {}}})
    assert check_named("Docker").text == "29.0, with GPUs"


def test_a_machine_without_a_gpu_gets_a_warning(check_named, monkeypatch):
    set_gpus_of_machine(monkeypatch)
    assert check_named("GPU").status == "warning"


def test_the_check_fails_if_the_driver_of_a_gpu_does_not_answer(check_named, monkeypatch, tmp_path):
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
    assert "less memory than any GPU of the labs" in check_named("GPU").text
    monkeypatch.setattr(preflight, "versions", lambda: {"torch": "2.13.0+cpu"})
    assert "PyTorch is built for CPUs only" in check_named("GPU").text


def test_a_docker_without_a_daemon_or_without_gpus_causes_a_warning(check_named, docker, tmp_path):
    docker(error="Cannot connect to the Docker daemon")
    assert check_named("Docker").line.startswith("warn  Docker: Cannot connect to the Docker daemon; start Docker")
    docker({"ServerVersion": "29.0", "Runtimes": {"runc": {}}})
    assert check_named("Docker").status == "ok"
    add_nvidia_device(tmp_path)
    assert "install the package nvidia-container-toolkit" in check_named("Docker").text
    docker({"ServerVersion": "29.0", "DiscoveredDevices": [{"ID": "nvidia.com/gpu=0"}]})
    assert check_named("Docker").status == "ok"


def test_rows_in_containers_need_the_package_docker_and_buildx(check_named, docker, monkeypatch):
    docker(error="docker: 'buildx' is not a docker command")
    assert check_named("container tools").line == (
        "warn  container tools: docker buildx, which builds the image, is not installed; apt install docker-buildx"
        " (needed for rows in containers)"
    )
    docker({"ServerVersion": "29.0"})
    assert check_named("container tools").text == "all 1 installed, docker buildx"
    monkeypatch.setitem(EXTRAS, "container", ("nosuch",))
    assert "pip install 'llm-testbed[container]'" in check_named("container tools").text


def test_the_check_fails_if_the_loopback_interface_rejects_connections(check_named, monkeypatch):
    def refuse(*_, **__):
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr(socket, "create_connection", refuse)
    assert check_named("ports").status == "failed"


def test_the_summary_names_what_to_fix_first_and_what_the_machine_can_run(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "PCI", tmp_path / "pci")
    set_gpus_of_machine(monkeypatch)
    monkeypatch.setitem(EXTRAS, "train", ("nosuch",))
    checks = preflight.check_this_machine(tmp_path)
    assert summary_in_words(checks) == "1 of 12 failed; start with: training packages"
    can = abilities_in_words(checks)
    assert "predictions (see training packages)" in can
    assert "full size (see training packages, GPU)" in can
