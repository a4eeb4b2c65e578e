"""Write locks/: the lists of exact versions, with the hash of each file. `make lock` runs this program."""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
PROJECT = FOLDER.parent
LISTS = {
    **{name: FOLDER / f"{name}.txt" for name in ("current", "as-taught", "jupyter", "uv", "checks")},
    "docs": PROJECT / "docs" / "requirements.txt",
    "mutants": PROJECT / "tests" / "benchmarks" / "mutants" / "requirements.txt",
    "openstack": PROJECT / "tests" / "testbed" / "openstack" / "requirements.txt",
    "tempest": PROJECT / "tests" / "testbed" / "openstack" / "tempest" / "requirements.txt",
}
OLDEST_PYTHON = "--python-version=3.11"  # each list must be installable with Python 3.11.0
FORMAT = ("--quiet", "--generate-hashes", "--no-header", "--no-annotate")
COMPILE = ["pip", "compile", "--no-deps", *FORMAT, OLDEST_PYTHON, "-"]


def lock_text(versions: Path) -> str:
    """Return the text of a lock. PyTorch is in a comment, because its build depends on the machine (environment.py)."""
    lines = [line for line in versions.read_text().splitlines() if line and not line.startswith("#")]
    hashed = [line for line in lines if not line.startswith("torch==")]
    torch = [f"# {line}" for line in lines if line.startswith("torch==")]
    done = subprocess.run(
        [sys.executable, "-m", "uv", *COMPILE], input="\n".join(hashed), stdout=subprocess.PIPE, check=True, text=True
    )
    source = versions.relative_to(PROJECT)
    return "\n".join([f"# Written by containers/lock.py from {source}.", *torch, done.stdout])


if __name__ == "__main__":
    for name, versions in LISTS.items():
        (FOLDER / "locks" / f"{name}.txt").write_text(lock_text(versions))
