"""Start the warm processes of a run, which import libraries once and then fork the processes of rows.

The first warm process imports the modules of notebooks, kernels and workers. It is ready in about a second, and rows
wait for it. The second one imports the libraries of launchers and ranks. With TESTBED_COLD_START=1, or after a warm
process has ended, rows start new interpreters instead.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from importlib.util import find_spec

from experiments.runners.local.row_process import NOTEBOOK_MODULE, environment_of_child_processes
from experiments.suites.row_spec import RowSpec
from experiments.system.environment import pad_environment
from experiments.system.warm_start import RANK_SOCKET_VARIABLE, ROW_SOCKET_VARIABLE, is_ready
from provision.temporary import TemporaryFolder

COLD_START_VARIABLE = "TESTBED_COLD_START"
MODULE = "experiments.system.warm_process"
WORKER_MODULE = "experiments.training.worker"
RANK_MODULE = "experiments.training.rank"
LAUNCHER_MODULE = "experiments.training.distributed.launcher"
PROCESSOR_MODULE = "experiments.training.models.processor"
ENGINE_MODULE = "experiments.training.engines.{}"
"""Module of an engine. No module here may import bitsandbytes or deepspeed, which open GPUs when they are imported."""
TRAINER_WITHOUT_PEFT = (
    "accelerate",
    "datasets",
    "experiments.training.data.loaders",
    "experiments.training.models.device_map",
)
"""What the engine hf_trainer imports, without transformers' Trainer, which imports peft and thereby bitsandbytes."""
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
POLL_INTERVAL_S = 0.02
SINGLE_THREAD_VARIABLES = {
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # asks the driver's library for GPUs, without opening one
    "OPENBLAS_NUM_THREADS": "1",  # NumPy's library starts its threads when it is loaded
    "NUMEXPR_NUM_THREADS": "1",  # so does numexpr, which pandas imports in the labs' versions (as-taught)
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # so does pyarrow's allocator
}
"""Variables that keep imports from starting threads or opening GPUs, because neither survives a fork."""


class WarmProcess:
    """A started warm process. environment: the environment variable by which other processes find the warm process."""

    def __init__(self, variable: str, modules: Sequence[str]) -> None:
        self._folder = TemporaryFolder("warm")
        address = str(self._folder.path / "socket")
        self._variable, self.environment = variable, {variable: address}
        with (self._folder.path / LOG_FILE).open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-m", MODULE, address, *modules],
                env=pad_environment(environment_of_child_processes() | SINGLE_THREAD_VARIABLES),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def ready(self) -> bool:
        """Whether the process has completed its imports, so that rows could start from it."""
        return is_ready(self.environment, self._variable)

    def wait(self, stopped: Callable[[], object]) -> None:
        """Wait until the imports are complete, the process has ended, or ``stopped`` returns a true value."""
        while not (self.ready or stopped() or self._process.poll() is not None):
            time.sleep(POLL_INTERVAL_S)

    def last_line_if_ended(self) -> str | None:
        """Return the last line that the process printed if it has ended, else None."""
        if self._process.poll() is None:
            return None
        lines = (self._folder.path / LOG_FILE).read_text(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), f"exit code {self._process.returncode}")

    def close(self) -> None:
        """End the warm process, and thereby the processes that it has forked."""
        self._process.kill()
        self._process.wait()
        self._folder.remove()


@contextmanager
def warm_processes(specs: Sequence[RowSpec], worker: str, stopped: Callable[[], object]) -> Iterator[list[WarmProcess]]:
    """Start the warm processes of rows, wait until the first one is ready, and yield them; end them afterwards.

    Yields an empty list if TESTBED_COLD_START is set: then each row starts new interpreters. stopped: returns whether
    to stop waiting.
    """
    with ExitStack() as stack:
        modules = {} if os.environ.get(COLD_START_VARIABLE) else modules_to_import(specs, worker)
        started = [stack.enter_context(closing(WarmProcess(*one))) for one in modules.items()]
        if started:
            started[0].wait(stopped)
        yield started


def modules_to_import(specs: Sequence[RowSpec], worker: str) -> dict[str, list[str]]:
    """Return the modules that each warm process imports, by the environment variable with the process's socket."""
    rows = {ROW_SOCKET_VARIABLE: [*NOTEBOOK_MODULES, worker]}
    return rows | {RANK_SOCKET_VARIABLE: rank_modules(specs)} if worker == WORKER_MODULE else rows


def rank_modules(specs: Sequence[RowSpec]) -> list[str]:
    """Return the modules that the launchers and ranks of rows import."""
    modules: list[str] = []
    for engine in sorted({spec.settings.engine for spec in specs}):
        modules += TRAINER_WITHOUT_PEFT if engine == "hf_trainer" else [ENGINE_MODULE.format(engine)]
    launcher = [LAUNCHER_MODULE] if any(spec.settings.ranks > 1 for spec in specs) else []
    processor = [PROCESSOR_MODULE] if any(spec.settings.optimizer == "deepspeed_cpu" for spec in specs) else []
    return [*modules, RANK_MODULE, *launcher, *processor]
