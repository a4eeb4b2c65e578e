"""Compile DeepSpeed's PyTorch extensions before rows run, cache them, and remove stale build locks."""

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
COMPILE_PROGRAM = """
from deepspeed.comm.torch import build_shm_op
from deepspeed.ops.op_builder import CPUAdamBuilder
CPUAdamBuilder().load()
build_shm_op()
"""
"""Compiles what a row with DeepSpeed needs: the CPU Adam, and communication between ranks for machines without GPU."""
POLL_S = 0.25


def extensions_folder(processor: str) -> Path:
    """Return the folder for compiled extensions, the value of TORCH_EXTENSIONS_DIR.

    Each combination of Python environment, library versions and processor has a separate folder.
    """
    libraries = [*(versions().get(library) for library in ("torch", "deepspeed")), _ninja_version()]
    digest = hashlib.sha256(f"{sys.prefix}\0{sys.version}\0{libraries}\0{processor}".encode()).hexdigest()
    return cache_folder() / "extensions" / digest[:12]


def _ninja_version() -> str:
    """Return the version of the installed ninja, '' if none is installed. Another version compiles everything again."""
    try:
        return version("ninja")
    except PackageNotFoundError:
        return ""


def drop_stale_locks(folder: Path) -> None:
    """Remove the locks of killed builds. Nothing is removed while any row runs on this machine: it may be building."""
    if row_process.any_row_alive():
        return
    for lock in folder.glob(f"*/{LOCK_FILE}"):
        lock.unlink(missing_ok=True)


def compile_extensions(
    specs: Sequence[RowSpec], folder: Path, print_line: Callable[[str], None], stopped: Callable[[], object]
) -> None:
    """Compile the extensions that the rows need, unless ``folder`` already has them.

    print_line: gets a line at the beginning and a line at the end. stopped: returns whether to stop the compilation.
    Raises no error: if an extension was not compiled, the row that needs it fails with the reason.
    """
    if (folder / BUILT_MARKER).exists() or not any(spec.settings.optimizer == "deepspeed_cpu" for spec in specs):
        return
    folder.mkdir(parents=True, exist_ok=True)
    print_line(
        "compiling DeepSpeed's CPU Adam, once for these versions and this processor: two to three minutes on two cores"
    )
    started_s = time.monotonic()
    code = _run([sys.executable, "-c", COMPILE_PROGRAM], folder, {"TORCH_EXTENSIONS_DIR": str(folder)}, stopped)
    if code == 0:
        (folder / BUILT_MARKER).touch()
        print_line(f"compiled DeepSpeed's CPU Adam in {time.monotonic() - started_s:.0f} s")
    elif code is not None:
        print_line(f"DeepSpeed's CPU Adam was not compiled (exit code {code}), see {folder / BUILD_LOG}")


def _run(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], stopped: Callable[[], object]
) -> int | None:
    """Run a command and write its output into ``folder``; return its exit code.

    If ``stopped`` returns true, the command and all compilers that it has started are killed, and None is returned.
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
