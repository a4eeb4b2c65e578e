"""Run an unchanged program on a GPU: measure its memory until a prediction would stop, and the time of later steps."""

import importlib
import itertools
import json
import os
import runpy
import statistics
import sys
from pathlib import Path
from typing import Any

from experiments.prediction.peak import MemoryTags
from experiments.prediction.times.record import StepRecorder
from experiments.results.schema import Phase
from experiments.training.measure.schedule import relative_spread
from provision.temporary import TemporaryFolder
from tests.benchmarks.forks import FORK

SCRIPTS = Path(__file__).parent / "scripts"
STEPS = 2
TIMED_STEPS = 6
"""Number of timed steps. They follow the third step and one more step, which warms up."""


class FakeTags(MemoryTags):
    """Fake of the phantom device's tags, for runs on a real GPU: no event is counted and nothing is tagged."""

    event_count = 0

    def __init__(self) -> None:
        self.phases, self.last_tagged_event = [(0, "load")], 0

    def _tag(self, kind: str, tensors: object) -> None: ...

    def set_owner(self, owner: str, tensors: object) -> None: ...


class FakeRecorder(StepRecorder):
    """Fake of the phantom device's recorder of operations, which records none."""

    def __init__(self) -> None: ...

    def begin_phase(self, phase: Phase) -> None: ...

    def end_step(self, optimizer: int, phase: Phase) -> None: ...


class Measurement:
    """The memory of this process before its third optimizer step, and the seconds of later steps.

    The hooks that find the third step delay the host, so the timed steps run without the hooks of modules.
    timed_steps: number of timed steps; 0: the process ends before the third step.
    """

    def __init__(self, timed_steps: int = TIMED_STEPS) -> None:
        self._timed_steps = timed_steps
        self._found: dict[str, Any] = {}
        self._begun: list[Any] = []
        self._optimizers = 1

    def begin_step(self, optimizers: int) -> None:
        """Measure before an optimizer's step, from the third one on; end the process after the last timed step.

        optimizers: how many optimizers take steps. Each of them calls this function once in every step of the training.
        """
        import torch
        from torch.nn.modules import module as modules

        if not self._found:
            torch.cuda.synchronize()
            peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
            self._found = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
            self._found |= {"peak_gib": peak / 2**30, "reserved_gib": reserved / 2**30}
            self._optimizers = optimizers
            for hooks in (modules._global_forward_pre_hooks, modules._global_forward_hooks):
                hooks.clear()
            if not self._timed_steps:
                self._end()
            return
        begun = torch.cuda.Event(enable_timing=True)
        begun.record()
        self._begun.append(begun)
        if len(self._begun) == (self._timed_steps + 1) * self._optimizers:
            self._end()

    def _end(self) -> None:
        self.write()
        os._exit(0)

    def write(self) -> None:
        """Print the measurement, or write it to a file in $MEASURED_FOLDER; do nothing before the third step."""
        if not self._found:
            return
        import torch

        torch.cuda.synchronize()
        begun = self._begun[:: self._optimizers]
        steps_s = [first.elapsed_time(second) / 1000 for first, second in itertools.pairwise(begun)]
        times = {"step_s": statistics.median(steps_s), "spread": relative_spread(steps_s)} if len(steps_s) > 1 else {}
        rank = int(os.environ.get("RANK", "0"))
        line = json.dumps({"rank": rank, **self._found, "timed_steps": len(steps_s), **times})
        if folder := os.environ.get("MEASURED_FOLDER"):
            Path(folder, f"{rank}.json").write_text(line)
        else:
            print(line, flush=True)
        if torch.distributed.is_initialized():
            torch.distributed.barrier()


def watch(timed_steps: int = TIMED_STEPS) -> Measurement:
    """Measure this process's memory until its third optimizer step, and the seconds of later steps.

    The process ends after ``timed_steps`` of them. If the program ends before, ``write`` of the measurement must be
    called.
    """
    from experiments.prediction.script.traced.watch import TrainingWatcher

    measurement = Measurement(timed_steps)

    def begin_step() -> None:
        measurement.begin_step(len(watcher.steps_by_optimizer))

    watcher = TrainingWatcher(FakeTags(), FakeRecorder(), STEPS, begin_step)
    watcher.install()
    return measurement


def measure_one(words: list[str], timed_steps: int = TIMED_STEPS) -> None:
    """Run a file or a module (`-m MODULE`) in this process, and measure it as ``watch`` does."""
    measurement = watch(timed_steps)
    run_program(words)
    measurement.write()


def run_program(words: list[str]) -> None:
    """Run a file or a module (`-m MODULE`) with its arguments in this process, as python does."""
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = words, str(Path(words[0]).parent)
        runpy.run_path(words[0], run_name="__main__")


def measure_in_fork(words: list[str]) -> dict[str, Any]:
    """Return what ``measure_one`` measures in a fork of this process, which has not used the GPU; or {"error": LINES}.

    The fork does not import the usual libraries again.
    """
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # else this process uses the GPU when it looks for one
    importlib.import_module("experiments.prediction.loops.build")
    with TemporaryFolder("measured") as temporary:
        found, log = temporary / "0.json", temporary / "log.txt"
        process = FORK.Process(target=_measure_and_log, args=(words, temporary, log))
        process.start()
        process.join()
        if not found.exists():
            return {"error": log.read_text(errors="replace").strip().splitlines()[-5:]}
        measured: dict[str, Any] = json.loads(found.read_text())
        return measured


def _measure_and_log(words: list[str], folder: Path, log: Path) -> None:
    os.environ["MEASURED_FOLDER"] = str(folder)
    with log.open("w") as out:
        for stream in (1, 2):
            os.dup2(out.fileno(), stream)
    measure_one(words)
