"""Cache for PyTorch extensions (DeepSpeed's): compiled before rows run, with removal of stale build locks."""

import hashlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from experiments.results.provenance import versions
from experiments.runners.local import row_process
from experiments.suites.row_spec import RowSpec
from experiments.system.files import cache_folder
from experiments.system.processes import process_group

LOCK_FILE = "lock"
BUILT_MARKER = "deepspeed.built"
BUILD_LOG = "deepspeed.log"
COMPILE = """
from deepspeed.comm.torch import build_shm_op
from deepspeed.ops.op_builder import CPUAdamBuilder
CPUAdamBuilder().load()
build_shm_op()
"""
"""What DeepSpeed compiles for a row: its Adam, and on a machine without a GPU the communication between ranks."""
POLL_S = 0.25


def extensions_folder(processor: str) -> Path:
    """Return the cache of this environment, its versions and this processor: the value of TORCH_EXTENSIONS_DIR."""
    libraries = [*(versions().get(library) for library in ("torch", "deepspeed")), _ninja_version()]
    digest = hashlib.sha256(f"{sys.prefix}\0{sys.version}\0{libraries}\0{processor}".encode()).hexdigest()
    return cache_folder() / "extensions" / digest[:12]


def _ninja_version() -> str:
    """Return the version of the environment's ninja, '' without one. Another version compiles everything again."""
    try:
        return version("ninja")
    except PackageNotFoundError:
        return ""


def drop_stale_locks(folder: Path) -> None:
    """Remove the locks of killed builds. While any row is alive on this machine, nothing is removed."""
    if row_process.any_row_alive():
        return
    for lock in folder.glob(f"*/{LOCK_FILE}"):
        lock.unlink(missing_ok=True)


def compile_extensions(
    specs: Sequence[RowSpec], folder: Path, print_line: Callable[[str], None], stopped: Callable[[], object]
) -> None:
    """Compile what the rows' libraries would compile at their first use, unless ``folder`` has it.

    print_line: gets a line at the beginning and one at the end. Gives up when ``stopped`` returns true. Raises no
    error: a row that needs an extension that was not compiled fails with the reason.
    """
    if (folder / BUILT_MARKER).exists() or not any(spec.settings.optimizer == "deepspeed_cpu" for spec in specs):
        return
    folder.mkdir(parents=True, exist_ok=True)
    print_line(
        "compiling DeepSpeed's CPU Adam, once for these versions and this processor: two to three minutes on two cores"
    )
    started_s = time.monotonic()
    code = _run([sys.executable, "-c", COMPILE], folder, {"TORCH_EXTENSIONS_DIR": str(folder)}, stopped)
    if code == 0:
        (folder / BUILT_MARKER).touch()
        print_line(f"compiled DeepSpeed's CPU Adam in {time.monotonic() - started_s:.0f} s")
    elif code is not None:
        print_line(f"DeepSpeed's CPU Adam was not compiled (exit code {code}), see {folder / BUILD_LOG}")


def _run(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], stopped: Callable[[], object]
) -> int | None:
    """Run a command with its output in ``folder``; return its exit code, or None if ``stopped`` returned true.

    The command and all compilers that it has started are then killed.
    """
    options = {
        "env": {**row_process.environment_of_child_processes(), **environment},
        "stdin": subprocess.DEVNULL,
        "stderr": subprocess.STDOUT,
    }
    with (folder / BUILD_LOG).open("wb") as log, process_group(command, stdout=log, **options) as process:
        while (code := process.poll()) is None:
            if stopped():
                return None
            time.sleep(POLL_S)
    return code
