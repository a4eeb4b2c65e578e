"""The cluster as a fixture, and its profile."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from experiments.runners.slurm.profile import Profile
from provision.ssh.ssh_shell import SshShell
from tests.support.needs import need
from tests.testbed.slurm.cluster import CPUS, MEMORY_MIB, NEEDS, PACKAGES, REPOSITORY, Cluster, started

SMALL, SMALL_MIB = "small", 16


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Start a cluster of two nodes with four GPUs each."""
    need(NEEDS, PACKAGES, root=True)
    with started((4, 4), small_disk) as made:
        yield made


@contextmanager
def small_disk(state: Path) -> Iterator[None]:
    """Mount a file system of SMALL_MIB that everybody may write to in ``state``, if this user may mount one."""
    folder = state / SMALL
    folder.mkdir()
    size = f"size={SMALL_MIB}m,mode=1777"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], capture_output=True).returncode == 0
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def shell(cluster: Cluster) -> Iterator[SshShell]:
    shell = SshShell(cluster.login(), connect_limit_s=5)
    yield shell
    shell.close()


@pytest.fixture
def profile(cluster: Cluster) -> Profile:
    return profile_of(cluster)


def profile_of(cluster: Cluster, **environment: str) -> Profile:
    """Return the profile of the cluster; jobs get the variables ``environment``, and ignore the assigned GPUs."""
    exports = {"PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": "", **environment}
    return Profile(
        name="testbed",
        title="a cluster of the tests",
        partition="gpu",
        nodes=len(cluster.nodes),
        gpu="NVIDIA A100-SXM4-80GB",
        gpu_memory_gib=79.3,
        gpus_per_node=4,
        cpus_per_node=CPUS,
        memory_per_node_gib=MEMORY_MIB // 1024,
        environment=str(Path(sys.prefix)),
        setup=tuple(f"export {name}='{value}'" for name, value in exports.items()),
        poll_s=0.5,
    )
