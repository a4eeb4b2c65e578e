"""Create a Python environment from locked lists of packages: python containers/environment.py FOLDER LOCK...

uv installs the lists: exact versions, each file checked by its hash. PyTorch is installed after them, since its file
depends on the machine: without an NVIDIA GPU the build for CPUs, which is some gigabytes smaller (UV_TORCH_BACKEND
chooses another one). A folder of local files (UV_FIND_LINKS or PIP_FIND_LINKS) is searched before the index. uv does
not compile Python files; those that each start of testbed imports are compiled last.

The environment is complete when FOLDER/.made exists. An incomplete one is created again; downloads are kept in uv's
cache. This file needs only Python's standard library.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

LOCKS = Path(__file__).with_name("locks")
UV = LOCKS / "uv.txt"
LINES_OF_ERROR = 15
PACKAGES = "{folder}/lib/python{version.major}.{version.minor}/site-packages"
IMPORTED_AT_START = ("annotated_types", "pydantic", "pydantic_core", "rich", "typer", "typing_inspection", "yaml")


def main(folder: Path, locks: Sequence[Path]) -> None:
    """Create the environment; exit with an error's text if a step fails."""
    if (folder / ".made").exists():
        return
    print(f"creating the environment in {folder}", flush=True)
    python = str(folder / "bin" / "python")
    uv = [str(folder / "bin" / "uv"), "pip", "install", "--python", python]
    torch = [line for lock in locks for line in lock.read_text().splitlines() if line.startswith("# torch==")]
    steps = [
        ("folder", [sys.executable, "-m", "venv", "--clear", str(folder)]),
        ("uv", [python, "-m", "pip", "install", "--quiet", "--require-hashes", "--requirement", str(UV)]),
        ("packages", [*uv, "--no-deps", "--require-hashes", *(f"--requirement={lock}" for lock in locks)]),
    ]
    if torch:
        steps.append(("PyTorch", [*uv, *(line.removeprefix("# ") for line in torch)]))
    if any(line.startswith("typer==") for lock in locks for line in lock.read_text().splitlines()):
        packages = (f"{PACKAGES.format(folder=folder, version=sys.version_info)}/{name}" for name in IMPORTED_AT_START)
        steps.append(("bytecode", [python, "-m", "compileall", "-q", *packages]))
    for number, (name, command) in enumerate(steps, start=1):
        _run(f"{number} of {len(steps)}: {name}", command)
    (folder / ".made").touch()


def _run(title: str, command: Sequence[str]) -> None:
    """Run a command. In a terminal it shows its own progress; elsewhere its output is shown only if it fails."""
    begun = time.monotonic()
    print(f"  {title}", flush=True)
    shown = None if sys.stderr.isatty() else subprocess.PIPE
    done = subprocess.run(command, env=_environment(), stdout=shown, stderr=shown and subprocess.STDOUT, text=True)
    if done.returncode:
        last = (done.stdout or "").splitlines()[-LINES_OF_ERROR:]
        sys.exit("\n".join([*last, f"{title}: exit code {done.returncode}; the same command tries again"]))
    print(f"  {title}: {time.monotonic() - begun:.0f} s", flush=True)


def _environment() -> dict[str, str]:
    """Return the environment of the steps: pip's folder of local files and its certificates hold for uv, too."""
    environment = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", **os.environ}
    for name, of_pip in {"UV_FIND_LINKS": "PIP_FIND_LINKS", "SSL_CERT_FILE": "PIP_CERT"}.items():
        if of_pip in environment:
            environment.setdefault(name, environment[of_pip])
    if "UV_FIND_LINKS" not in environment:
        environment.setdefault("UV_TORCH_BACKEND", "auto")
    environment.pop("VIRTUAL_ENV", None)
    return environment


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(lock) for lock in sys.argv[2:]])
