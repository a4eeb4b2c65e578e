"""Check what this machine can run, and what to install so that it can run the rest."""

import json
import platform
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from experiments.results.provenance import versions
from experiments.runners.admission import (
    DISK_PER_ROW_GIB,
    HOST_MEMORY_PER_RANK_GIB,
    SPARE_DISK_GIB,
    missing_build_tool,
    too_small_reason,
)
from experiments.runners.container.engine import TOOLKIT_MISSING
from experiments.runners.container.image import BUILDX_MISSING, has_buildx
from experiments.suites.suite import cards_of_suites, suites_in_group
from experiments.system.files import GIB, cache_folder
from experiments.system.packages import EXTRAS
from provision.checks import Check, run_check
from provision.errors import PreflightCheckFailed
from provision.hardware.gpus import driver_version
from provision.hardware.host_memory import host_memory
from provision.hardware.local import this_machine

PREDICTIONS, MINIATURES, FULL_SIZE = "predictions", "miniatures", "full size"
LEASES, CLUSTERS, IMAGES, CONTAINERS = "leases", "clusters", "images", "rows in containers"
EVERY_RUN = (MINIATURES, FULL_SIZE)
RESPONSE_TIMEOUT_S = 15.0
NVIDIA_VENDOR, DISPLAY_CLASS = "0x10de", "0x03"
PCI = Path("/sys/bus/pci/devices")


def check_this_machine(results: Path) -> list[Check]:
    """Run all checks of this machine and return them. results: folder that runs are stored in; it need not exist."""
    needed_for_all = (PREDICTIONS, *EVERY_RUN)
    return [
        run_check("Python", _check_python, (*needed_for_all, LEASES, CLUSTERS)),
        run_check("training packages", lambda: _check_packages("train"), needed_for_all),
        _failure_as_warning(run_check("leasing packages", lambda: _check_packages("chameleon"), (LEASES,))),
        run_check("C++ compiler", _check_compiler, needed_for_all),
        run_check("disk", lambda: _check_disk(results), needed_for_all),
        run_check("memory", _check_host_memory, needed_for_all),
        _check_gpu(),
        _failure_as_warning(run_check("Docker", _check_docker, (IMAGES, CONTAINERS))),
        _failure_as_warning(run_check("container tools", _check_container_tools, (CONTAINERS,))),
        run_check("ports", _check_ports, EVERY_RUN),
        _failure_as_warning(
            run_check("git", lambda: _check_program("git", "results do not record the commit; apt install git"))
        ),
        _failure_as_warning(run_check("SSH client", _check_ssh, (LEASES, CLUSTERS))),
    ]


def _failure_as_warning(check: Check) -> Check:
    """Return the check, with a warning in place of a failure."""
    return Check(check.name, "warning", check.text, check.needed_for) if check.status == "failed" else check


def _check_python() -> str:
    if platform.system() != "Linux":
        raise PreflightCheckFailed(f"{platform.system()} is not supported; use Linux, or on Windows its WSL 2")
    return f"{platform.python_version()} in {sys.prefix}"


def _check_packages(extra: str) -> str:
    missing = [module for module in EXTRAS[extra] if find_spec(module) is None]
    if missing:
        raise PreflightCheckFailed(f"{', '.join(missing)} missing; make env, or pip install 'llm-testbed[{extra}]'")
    if extra == "train":
        return ", ".join(f"{name} {number}" for name, number in versions().items())
    return f"all {len(EXTRAS[extra])} installed"


def _check_compiler() -> str:
    if missing := missing_build_tool():
        package = missing.partition("package ")[2].rstrip(")")
        raise PreflightCheckFailed(
            f"no {missing}, which compiles the code of predictions and DeepSpeed's CPU Adam; apt install {package}"
        )
    return str(shutil.which("c++"))


def _check_disk(results: Path) -> str:
    needed_gib = SPARE_DISK_GIB + DISK_PER_ROW_GIB * sum(len(suite.rows) for suite in suites_in_group("both"))
    free_gib = {folder: _free_gib(folder) for folder in (results.absolute(), cache_folder())}
    finding = ", ".join(f"{free:.1f} GiB free at {folder}" for folder, free in free_gib.items())
    if min(free_gib.values()) < needed_gib:
        raise PreflightCheckFailed(
            f"{finding}, {needed_gib:.1f} GiB are needed; free some space, or set --results and TESTBED_CACHE"
        )
    return finding


def _free_gib(folder: Path) -> float:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free / GIB


def _check_host_memory() -> str:
    memory = host_memory()
    available_gib = memory.available / GIB
    finding = f"{available_gib:.1f} of {memory.total / GIB:.1f} GiB available"
    if available_gib < HOST_MEMORY_PER_RANK_GIB["tiny"]:
        raise PreflightCheckFailed(
            f"{finding}, a tiny model needs {HOST_MEMORY_PER_RANK_GIB['tiny']} GiB; end other programs"
        )
    return finding


def _check_gpu() -> Check:
    """Check for a GPU with a driver that answers. Without a GPU, the result of the check is a warning."""

    def describe_gpus() -> str:
        gpus = this_machine().gpus
        if not gpus and has_nvidia_gpu():
            raise PreflightCheckFailed(
                "an NVIDIA GPU whose driver does not answer; install the driver (ubuntu-drivers install), "
                "or restart after its update"
            )
        if gpus and versions().get("torch", "").endswith("+cpu"):
            raise PreflightCheckFailed(f"{gpus[0].name}, but PyTorch is built for CPUs only; install it from PyPI")
        if not gpus:
            return ""
        names = ", ".join(f"{gpu.name} ({gpu.memory_gib:.0f} GiB)" for gpu in gpus)
        if not (usable_cards := [card for card in cards_of_suites() if not too_small_reason(gpus[0], card)]):
            raise PreflightCheckFailed(f"{names}: less memory than any GPU of the labs; rows run with tiny models")
        return f"{names}, driver {driver_version()}, runs rows for {', '.join(usable_cards)}"

    check = run_check("GPU", describe_gpus, (FULL_SIZE,))
    if check.text:
        return check
    return Check(
        "GPU",
        "warning",
        "no GPU; rows run with tiny models here, or at full size on leased nodes",
        (FULL_SIZE,),
    )


def has_nvidia_gpu() -> bool:
    """Return whether the machine has an NVIDIA GPU, with or without a driver."""
    return any(
        (device / "class").read_text().startswith(DISPLAY_CLASS)
        for device in PCI.glob("*")
        if (device / "vendor").read_text().strip() == NVIDIA_VENDOR
    )


def _check_docker() -> str:
    _check_program("docker", "install Docker (docs.docker.com/engine/install)")
    command = ["docker", "info", "--format", "{{json .}}"]
    try:
        response = subprocess.run(command, capture_output=True, text=True, timeout=RESPONSE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise PreflightCheckFailed(
            f"the daemon does not answer within {RESPONSE_TIMEOUT_S:.0f} s; systemctl restart docker"
        ) from None
    if response.returncode or not (info := _parse_json_object(response.stdout)).get("ServerVersion"):
        message = (response.stderr.strip().splitlines() or ["the daemon does not answer"])[-1]
        raise PreflightCheckFailed(
            f"{message}; start Docker (systemctl start docker), or join the group docker (usermod -aG docker $USER)"
        )
    version = info["ServerVersion"]
    if has_nvidia_gpu() and not _docker_has_gpus(info):
        raise PreflightCheckFailed(f"{version}: {TOOLKIT_MISSING}")
    return f"{version}, {'with' if has_nvidia_gpu() else 'without'} GPUs"


def _check_container_tools() -> str:
    package = _check_packages("container")
    if not has_buildx():
        raise PreflightCheckFailed(BUILDX_MISSING)
    return f"{package}, docker buildx"


def _docker_has_gpus(info: dict[str, object]) -> bool:
    """Return whether containers can use the GPUs, through NVIDIA's container runtime or as CDI devices."""
    return "nvidia" in f"{info.get('Runtimes')} {info.get('DiscoveredDevices')}"


def _parse_json_object(text: str) -> dict[str, object]:
    try:
        return dict(json.loads(text))
    except ValueError:
        return {}


def _check_ports() -> str:
    """Listen on a port of this machine and connect to it, as ranks and the kernels of notebooks do."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            socket.create_connection(("localhost", port), timeout=RESPONSE_TIMEOUT_S).close()
    except OSError as problem:
        raise PreflightCheckFailed(
            f"localhost cannot be reached ({problem}); correct /etc/hosts or the firewall"
        ) from None
    return "any free port on localhost"


def _check_program(name: str, remedy: str) -> str:
    if path := shutil.which(name):
        return path
    raise PreflightCheckFailed(f"{name} missing; {remedy}")


def _check_ssh() -> str:
    remedy = "apt install openssh-client"
    return ", ".join(_check_program(name, remedy) for name in ("ssh", "ssh-keygen"))
