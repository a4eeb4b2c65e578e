"""The memory of this machine that this process can use: all of it, or less if a control group limits the process.

Containers, Slurm jobs and systemd units limit memory by control groups. This module reads both versions of them:
https://docs.kernel.org/admin-guide/cgroup-v2.html and https://docs.kernel.org/admin-guide/cgroup-v1/memory.html.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import psutil

SELF = Path("/proc/self")


class HostMemory(NamedTuple):
    """Memory in bytes. total: what this process can use at most. available: what it can still use now."""

    total: int
    available: int


class _Files(NamedTuple):
    """Names of a control group's files with its memory limit and use, and the key of its file cache in memory.stat."""

    limit: str
    use: str
    file_cache: str


FILES = {
    "cgroup2": _Files("memory.max", "memory.current", "inactive_file"),
    "cgroup": _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""By the file system's type. The kernel frees unused cached files before the limit applies, so they do not count."""


def host_memory() -> HostMemory:
    """Return the memory of this machine, limited by the control groups of this process and their ancestors."""
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    for kind, folder in _control_groups():
        files = FILES[kind]
        limit = _read_number(folder / files.limit)
        if limit is None or limit >= memory.total:
            continue
        used = (_read_number(folder / files.use) or 0) - _file_cache(folder, files.file_cache)
        total, available = min(total, limit), min(available, max(0, limit - used))
    return HostMemory(total, available)


def processes_that_fit(size_bytes: int) -> int:
    """Return how many more processes of this size fit into the memory that this process can still use."""
    return int(host_memory().available // max(1, size_bytes))


def _control_groups() -> Iterator[tuple[str, Path]]:
    """Yield the folder of each control group that can limit this process's memory, ancestors last.

    Before each folder is the type of its file system, a key of FILES.
    """
    with suppress(OSError):
        groups = dict(_group_paths((SELF / "cgroup").read_text()))
        for kind, root, mount in _mounts((SELF / "mountinfo").read_text()):
            if kind in groups:
                folder = _visible_folder(groups[kind], root, mount)
                yield from ((kind, one) for one in (folder, *folder.parents) if one.is_relative_to(mount))


def _group_paths(lines: str) -> Iterator[tuple[str, PurePosixPath]]:
    """Yield the type and path of this process's groups. lines: lines such as '4:memory:/user' and '0::/user'."""
    for line in lines.splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" or "memory" in controllers.split(","):
            yield ("cgroup2" if number == "0" else "cgroup"), PurePosixPath(path)


def _mounts(lines: str) -> Iterator[tuple[str, PurePosixPath, Path]]:
    """Yield each mount of control groups: its type, the group at its top, its folder; see proc_pid_mountinfo(5)."""
    for line in lines.splitlines():
        before, _, after = line.partition(" - ")
        root, mount = before.split()[3:5]
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2" or (kind == "cgroup" and "memory" in options.split(",")):
            yield kind, PurePosixPath(root), Path(mount)


def _visible_folder(group: PurePosixPath, root: PurePosixPath, mount: Path) -> Path:
    """Return the folder of a group. root: the group at the top of the mount, in a container often its own group."""
    inside = group.relative_to(root) if group.is_relative_to(root) else group.relative_to("/")
    folder = mount / inside
    return folder if ".." not in inside.parts and folder.is_dir() else mount


def _read_number(file: Path) -> int | None:
    """Return the number in a file; None for the word 'max', or without the file, as in the root control group."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _file_cache(folder: Path, key: str) -> int:
    with suppress(OSError):
        values = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return int(values.get(key, 0))
    return 0
