"""The warm process of a run, from which rows start as soon as it has imported the libraries.

With TESTBED_COLD_START=1, every row starts new interpreters instead. Rows also do so if the warm process has ended.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

from experiments.runners.local.row_process import NOTEBOOK_MODULE, environment_of_modules
from experiments.suites.row_spec import RowSpec
from experiments.system.environment import pad_environment
from experiments.system.warm_start import WARM_SOCKET_VARIABLE, is_ready
from provision.temporary import TemporaryFolder

COLD_START_VARIABLE = "TESTBED_COLD_START"
MODULE = "experiments.system.warm_process"
WORKER_MODULE = "experiments.training.worker"
RANK_MODULE = "experiments.training.rank"
LAUNCHER_MODULE = "experiments.training.distributed.launcher"
ENGINE_MODULE = "experiments.training.engines.{}"
"""Module of an engine. No module here may import bitsandbytes or deepspeed, which open GPUs when they are imported."""
TRAINER_WITHOUT_PEFT = (
    "accelerate",
    "datasets",
    "experiments.training.data.loaders",
    "experiments.training.models.device_map",
)
"""What the engine hf_trainer imports, except transformers' Trainer: its import of peft also imports bitsandbytes."""
NOTEBOOK_MODULES = (
    "papermill",
    NOTEBOOK_MODULE,
    "experiments.runners.local.warm_kernel",
    "ipykernel.kernelapp",
    "ipykernel.debugger",  # a kernel imports it when it starts
    "IPython.core.completerlib",
    "IPython.core.oinspect",
    "IPython.extensions.storemagic",
    "tornado.platform.asyncio",
    *(name for name in ("black",) if find_spec(name)),  # papermill formats parameters with it, if it is installed
    "experiments.notebooks.row",
)
LOG_FILE = "log.txt"
SINGLE_THREADED = {
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # asks the driver's library for GPUs, without opening one
    "OPENBLAS_NUM_THREADS": "1",  # NumPy's library starts its threads when it is loaded
    "NUMEXPR_NUM_THREADS": "1",  # so does numexpr, which pandas imports with the versions as taught
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # so does pyarrow's allocator
}


class WarmProcess:
    """A warm process that has been started; ``environment`` are the variables by which rows find it."""

    def __init__(self, modules: Sequence[str]) -> None:
        self._folder = TemporaryFolder("warm")
        address = str(self._folder.path / "socket")
        self.environment = {WARM_SOCKET_VARIABLE: address}
        with (self._folder.path / LOG_FILE).open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-m", MODULE, address, *modules],
                env=pad_environment(environment_of_modules() | SINGLE_THREADED),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def ready(self) -> bool:
        """Whether the process has completed its imports, so that rows could start from it."""
        return is_ready(self.environment)

    def ended(self) -> str | None:
        """Return the last line that the process printed if it has ended, else None."""
        if self._process.poll() is None:
            return None
        lines = (self._folder.path / LOG_FILE).read_text(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), f"exit code {self._process.returncode}")

    def close(self) -> None:
        """End the process, and the processes that it has started."""
        self._process.kill()
        self._process.wait()
        self._folder.remove()


@contextmanager
def warm_process(specs: Sequence[RowSpec], worker: str) -> Iterator[WarmProcess | None]:
    """Start and yield the warm process of rows, and end it afterwards.

    Yields None if TESTBED_COLD_START is set: then each row starts as a new interpreter.
    """
    if os.environ.get(COLD_START_VARIABLE):
        yield None
        return
    warm = WarmProcess(modules_to_import(specs, worker))
    try:
        yield warm
    finally:
        warm.close()


def modules_to_import(specs: Sequence[RowSpec], worker: str) -> list[str]:
    """Return the modules that the processes of rows import, in the order in which the processes start."""
    modules = [*NOTEBOOK_MODULES, worker]
    if worker != WORKER_MODULE:
        return modules
    for engine in sorted({spec.settings.engine for spec in specs}):
        modules += TRAINER_WITHOUT_PEFT if engine == "hf_trainer" else [ENGINE_MODULE.format(engine)]
    return [*modules, RANK_MODULE, *([LAUNCHER_MODULE] if any(spec.settings.ranks > 1 for spec in specs) else [])]
