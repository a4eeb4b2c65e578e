"""Create a Python environment from locked lists of packages: python containers/environment.py FOLDER LOCK...

uv installs the exact versions in the lists, and checks the hash of each file. PyTorch is installed afterwards, because
the right build of PyTorch depends on the machine. Without an NVIDIA GPU, uv installs the build for CPUs, which is some
gigabytes smaller; UV_TORCH_BACKEND selects another build. uv searches a folder of local files (UV_FIND_LINKS or
PIP_FIND_LINKS) before the index. uv does not compile Python files, so the last step compiles the packages that every
start of testbed imports.

The environment is complete when FOLDER/.made exists. An incomplete environment is created again; uv caches the
downloads. environment.py needs only Python's standard library.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

LOCKS = Path(__file__).with_name("locks")
UV_LOCK = LOCKS / "uv.txt"
"""List with the locked version of uv itself, which pip installs. uv then installs all other packages."""
ERROR_LINES = 15
SITE_PACKAGES = "{folder}/lib/python{version.major}.{version.minor}/site-packages"
IMPORTED_AT_START = ("annotated_types", "pydantic", "pydantic_core", "rich", "typer", "typing_inspection", "yaml")


def main(folder: Path, locks: Sequence[Path]) -> None:
    """Create the environment; if a step fails, exit with the end of the step's output."""
    if (folder / ".made").exists():
        return
    print(f"creating the environment in {folder}", flush=True)
    python = str(folder / "bin" / "python")
    uv = [str(folder / "bin" / "uv"), "pip", "install", "--python", python]
    torch = [line for lock in locks for line in lock.read_text().splitlines() if line.startswith("# torch==")]
    steps = [
        ("folder", [sys.executable, "-m", "venv", "--clear", str(folder)]),
        ("uv", [python, "-m", "pip", "install", "--quiet", "--require-hashes", "--requirement", str(UV_LOCK)]),
        ("packages", [*uv, "--no-deps", "--require-hashes", *(f"--requirement={lock}" for lock in locks)]),
    ]
    if torch:
        steps.append(("PyTorch", [*uv, *(line.removeprefix("# ") for line in torch)]))
    if any(line.startswith("typer==") for lock in locks for line in lock.read_text().splitlines()):
        packages = (
            f"{SITE_PACKAGES.format(folder=folder, version=sys.version_info)}/{name}" for name in IMPORTED_AT_START
        )
        steps.append(("bytecode", [python, "-m", "compileall", "-q", *packages]))
    for number, (name, command) in enumerate(steps, start=1):
        _run_step(f"{number} of {len(steps)}: {name}", command)
    (folder / ".made").touch()


def _run_step(title: str, command: Sequence[str]) -> None:
    """Run a command. A terminal shows the command's own progress; otherwise its output is printed only if it fails."""
    started_s = time.monotonic()
    print(f"  {title}", flush=True)
    output = None if sys.stderr.isatty() else subprocess.PIPE
    done = subprocess.run(command, env=_step_variables(), stdout=output, stderr=output and subprocess.STDOUT, text=True)
    if done.returncode:
        last = (done.stdout or "").splitlines()[-ERROR_LINES:]
        sys.exit("\n".join([*last, f"{title}: exit code {done.returncode}; run the same command to try again"]))
    print(f"  {title}: {time.monotonic() - started_s:.0f} s", flush=True)


def _step_variables() -> dict[str, str]:
    """Return the environment variables of the steps. They make uv use the local files and certificates set for pip."""
    environment = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", **os.environ}
    for uv_name, pip_name in {"UV_FIND_LINKS": "PIP_FIND_LINKS", "SSL_CERT_FILE": "PIP_CERT"}.items():
        if pip_name in environment:
            environment.setdefault(uv_name, environment[pip_name])
    if "UV_FIND_LINKS" not in environment:
        environment.setdefault("UV_TORCH_BACKEND", "auto")
    environment.pop("VIRTUAL_ENV", None)
    return environment


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(lock) for lock in sys.argv[2:]])
