"""A module for the warm process: it writes what it is into the file of its first argument, then does the second.

python -m tests.support.processes.warm_child FILE [ACTION]
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

import psutil


def what_it_is() -> dict[str, object]:
    """Return what a process has of its own."""
    return {
        "pid": os.getpid(),
        "name": __name__,
        "arguments": sys.argv[1:],
        "folder": os.getcwd(),
        "path": sys.path[0],
        "shown": psutil.Process().environ(),
        "environment": dict(os.environ),
        "in_c": os.popen("printenv ONLY_HERE").read().strip(),
        "session": os.getsid(0) == os.getpid(),
        "oom_score_adj": Path("/proc/self/oom_score_adj").read_text().strip(),
        "threads": threading.active_count(),
        "files": sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 1, 2)),
        "sockets": sum("socket:" in _link(fd) for fd in os.listdir("/proc/self/fd")),
    }


def _link(descriptor: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except FileNotFoundError:
        return ""


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.with_suffix(".part").write_text(json.dumps(what_it_is()))
    path.with_suffix(".part").replace(path)
    action = sys.argv[2] if len(sys.argv) > 2 else ""
    print(f"does {action}")
    if action == "hang":
        time.sleep(600)
    if action == "abort":
        os.abort()
    sys.exit(int(action or 0))
