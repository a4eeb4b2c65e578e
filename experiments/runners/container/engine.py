"""Connect to this machine's Docker, choose how containers get GPUs, and check that no other container has GPUs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import psutil

from experiments.errors import InputError
from experiments.system.packages import require_packages

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container
    from docker.types import DeviceRequest

FLAG = "--in-container"
RESPONSE_TIMEOUT_S = 60
RUNNER_LABEL = "llm-testbed.runner"
"""Label of a row's container: the process id of the command that started it."""
CDI_GPU = "nvidia.com/gpu="
TOOLKIT_MISSING = "Docker gives containers no GPU; install the package nvidia-container-toolkit"
REMEDIES = {
    "Permission denied": "your user may not use Docker; usermod -aG docker $USER, then log in again",
    "No such file": "Docker does not run here; install it (docs.docker.com/engine/install), or systemctl start docker",
    "Connection refused": "Docker does not run here; systemctl start docker",
}


def connect() -> "DockerClient":
    """Connect to Docker, at DOCKER_HOST if it is set. If Docker does not answer, raises InputError with the remedy."""
    require_packages("docker")
    import docker

    try:
        return docker.from_env(timeout=RESPONSE_TIMEOUT_S)
    except docker.errors.DockerException as problem:
        why = next((remedy for words, remedy in REMEDIES.items() if words in str(problem)), str(problem))
        raise InputError(f"{FLAG}: {why}") from None


def gpu_requests(info: dict[str, Any], gpus: Sequence[int]) -> "list[DeviceRequest]":
    """Return the requests to Docker that give a container the GPUs with these indices; none without GPUs.

    The requests use CDI (Container Device Interface) if Docker knows CDI devices, as on leased nodes, else NVIDIA's
    container runtime. info: what Docker reports about itself. Raises InputError if Docker gives containers no GPU.
    """
    from docker.types import DeviceRequest

    if not gpus:
        return []
    if any(str(device.get("ID", "")).startswith(CDI_GPU) for device in info.get("DiscoveredDevices") or ()):
        return [DeviceRequest(driver="cdi", device_ids=[f"{CDI_GPU}{index}" for index in gpus])]
    if "nvidia" in (info.get("Runtimes") or {}):
        return [DeviceRequest(device_ids=[str(index) for index in gpus], capabilities=[["gpu"]])]
    raise InputError(f"{FLAG}: {TOOLKIT_MISSING}")


def require_free_gpus(client: "DockerClient") -> None:
    """Raise InputError if running containers have GPUs. The message has the command that stops these containers."""
    running = client.containers.list(ignore_removed=True)
    if found := [container.name for container in running if has_gpus(container.attrs["HostConfig"])]:
        raise InputError(f"{FLAG}: other containers have GPUs; stop them first: docker stop {' '.join(sorted(found))}")


def has_gpus(host_config: dict[str, Any]) -> bool:
    """Return whether a container has GPUs: through a device request, a device file, or NVIDIA's container runtime."""
    requests = host_config.get("DeviceRequests") or ()
    devices = [device["PathInContainer"] for device in host_config.get("Devices") or ()]
    return (
        any(is_for_gpus(request) for request in requests)
        or any(path.startswith("/dev/nvidia") for path in devices)
        or host_config.get("Runtime") == "nvidia"
    )


def is_for_gpus(request: dict[str, Any]) -> bool:
    """Return whether a device request, as Docker reports it, is for GPUs."""
    capabilities = [name for group in request.get("Capabilities") or () for name in group]
    return "gpu" in capabilities or any(name.startswith(CDI_GPU) for name in request.get("DeviceIDs") or ())


def remove_abandoned_containers(client: "DockerClient") -> None:
    """Remove the containers of rows whose command was killed."""
    for container in client.containers.list(all=True, ignore_removed=True, filters={"label": RUNNER_LABEL}):
        if not psutil.pid_exists(int(container.labels[RUNNER_LABEL])):
            remove_container(container)


def remove_container(container: "Container") -> None:
    """Kill and remove a container; one that is already being removed is not an error."""
    from docker.errors import APIError, NotFound

    try:
        container.remove(force=True)
    except NotFound:
        return
    except APIError as problem:
        if problem.response is None or problem.response.status_code != 409:
            raise
