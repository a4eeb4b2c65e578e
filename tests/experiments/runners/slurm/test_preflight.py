"""Checks of a cluster. Fakes: Slurm's commands, which are scripts on this machine."""

import shutil
import sys

import pytest

from experiments.runners.slurm.cluster import TOOLS
from experiments.runners.slurm.preflight import check_cluster
from experiments.runners.slurm.profile import Profile
from provision.ssh.login import SshConfigHost
from provision.ssh.shell import LocalShell
from provision.ssh.ssh_shell import SshShell

SLURM = TOOLS[:3]
OTHERS = ("sh", "bash", "timeout", "mkdir", "hostname", "basename", "dirname", "uname")


def profile(**more):
    given = {"needs_account": True, "partition": "gpu", **more}
    return Profile(name="mine", title="Mine", cpus_per_node=8, memory_per_node_gib=64, **given)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Return a function that puts fake commands of Slurm on PATH, except those that its arguments name."""

    def install(*missing):
        for tool in {*SLURM, "sinfo"} - {*missing}:
            (tmp_path / tool).write_text("#!/bin/sh\nprintf 'gpu\\nsmall\\n'\n")
            (tmp_path / tool).chmod(0o755)
        for tool in (*OTHERS, *TOOLS[3:]):
            (tmp_path / tool).symlink_to(shutil.which(tool))
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setenv("HOME", str(tmp_path))

    return install


def checks_by_name(**more):
    return {one.name: one for one in check_cluster(LocalShell(), profile(**more))}


def test_every_check_passes_on_a_cluster_that_is_ready(slurm):
    slurm()
    assert {one.status for one in checks_by_name(account="project_1", environment=sys.prefix).values()} == {"ok"}


def test_everything_that_is_missing_is_reported_at_once(slurm):
    slurm("sbatch", "squeue")
    checks = checks_by_name(partition="gpux", environment="/nowhere")
    assert {name for name, one in checks.items() if one.status == "failed"} == {
        *("account", "tools", "partitions", "environment")
    }
    assert checks["tools"].text.startswith("sbatch, squeue missing")
    assert checks["partitions"].text == "no partition gpux; correct the profile; allowed: gpu, small"


def test_an_unknown_host_ends_the_checks_and_is_reported_with_a_fix():
    shell = SshShell(SshConfigHost("nosuch.invalid"))
    checks = {one.name: one for one in check_cluster(shell, profile(account="project_1"))}
    assert "add to ~/.ssh/config: 'Host nosuch.invalid'" in checks["connection"].text
    assert [name for name, one in checks.items() if one.status == "not checked"] == [
        *("tools", "folder", "partitions", "environment")
    ]
