"""The memory of this machine, limited by control groups: fake /proc/self and fake folders of control groups."""

from types import SimpleNamespace

import psutil
import pytest

from provision.hardware import host_memory as module
from provision.hardware.host_memory import HostMemory, host_memory

GIB = 1024**3
UNLIMITED_V1 = 9223372036854771712


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Return a function that makes control groups, in which this process runs, on a machine of 64 GiB with 48 free."""
    memory = SimpleNamespace(total=64 * GIB, available=48 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(module, "SELF", tmp_path)

    def make(kind, group, root="/", limits=None):
        files, mount = module.FILES[kind], tmp_path / "groups"
        number, controllers = ("0", "") if kind == "cgroup2" else ("4", "memory")
        (tmp_path / "cgroup").write_text(f"3:cpu:/elsewhere\n{number}:{controllers}:{group}\n")
        (tmp_path / "mountinfo").write_text(
            "22 1 0:21 / /proc rw,relatime shared:5 - proc proc rw\n"
            "23 1 0:22 / /unnamed rw,relatime shared:6 - tmpfs  rw\n"
            f"35 31 0:32 {root} {mount} rw,relatime shared:9 - {kind} {kind} rw,memory\n"
        )
        for path, (limit, used, cache) in (limits or {}).items():
            folder = mount / path
            folder.mkdir(parents=True, exist_ok=True)
            (folder / files.limit).write_text(f"{limit}\n")
            (folder / files.use).write_text(f"{used}\n")
            (folder / "memory.stat").write_text(f"anon 5\n{files.file_cache} {cache}\n")

    return make


@pytest.mark.parametrize("kind", ["cgroup", "cgroup2"])
def test_the_limit_of_the_own_group_less_its_use_without_unused_cached_files_is_available(groups, kind):
    groups(kind, "/user/job", limits={"user/job": (4 * GIB, 3 * GIB, 1 * GIB)})
    assert host_memory() == HostMemory(4 * GIB, 2 * GIB)


@pytest.mark.parametrize(("kind", "unlimited"), [("cgroup", UNLIMITED_V1), ("cgroup2", "max")])
def test_the_smallest_limit_of_the_ancestors_applies_and_a_group_without_limit_adds_none(groups, kind, unlimited):
    limits = {
        ".": (unlimited, 9 * GIB, 0),
        "user": (16 * GIB, 15 * GIB, 0),
        "user/job": (8 * GIB, 2 * GIB, 0),
        "user/other": (1 * GIB, 1 * GIB, 0),
    }
    groups(kind, "/user/job", limits=limits)
    assert host_memory() == HostMemory(8 * GIB, 1 * GIB)
    groups(kind, "/", limits={".": (unlimited, 9 * GIB, 0)})
    assert host_memory() == HostMemory(64 * GIB, 48 * GIB)


@pytest.mark.parametrize("kind", ["cgroup", "cgroup2"])
@pytest.mark.parametrize(
    ("group", "root"),
    [("/docker/5f", "/docker/5f"), ("/", "/"), ("/docker/5f", "/"), ("/../other", "/"), ("/5f", "/docker/5f")],
)
def test_in_a_container_the_group_at_the_top_of_the_mount_is_the_own_one(groups, kind, group, root):
    groups(kind, group, root, limits={".": (4 * GIB, 1 * GIB, 0)})
    assert host_memory() == HostMemory(4 * GIB, 3 * GIB)


def test_a_use_above_the_limit_leaves_nothing(groups):
    groups("cgroup2", "/job", limits={"job": (4 * GIB, 5 * GIB, 0)})
    assert host_memory().available == 0


def test_a_machine_without_control_groups_has_all_its_memory(groups):
    assert host_memory() == HostMemory(64 * GIB, 48 * GIB)
    groups("cgroup2", "/gone")
    assert host_memory() == HostMemory(64 * GIB, 48 * GIB)
