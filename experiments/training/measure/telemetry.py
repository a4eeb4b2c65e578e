"""What GPU and host do while a row runs, sampled in another process so that it costs the trainer nothing."""

import csv
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil

from experiments.results.schema import Phase
from experiments.system.files import GIB
from provision.hardware import gpus

EVERY_S = 0.5
GPU_FIELDS: dict[str, Callable[[Iterable[float]], float]] = {
    "gpu_util_percent": fmean,
    "gpu_memory_gib": max,
    "gpu_power_w": sum,
    "gpu_sm_clock_mhz": fmean,
    "gpu_temperature_c": max,
    "gpu_processes": max,
}
EACH_GPU = ("util_percent", "memory_gib")
FIELDS = ("t_s", "phase", *GPU_FIELDS, "host_cpu_percent", "host_memory_gib", "process_memory_gib")
TRAINING = "training_gpu_util_percent_mean"


class Telemetry:
    """Samples twice a second into a CSV file from ``with`` to its end; summary() has means and maxima.

    t_s is seconds since the start, process_memory_gib the resident memory of the trainer's processes, ``phase`` where
    the training is, as its owner says. GPU columns are empty without one. Of several GPUs utilisation and clocks are
    means, power is the sum, all else that of the GPU with the most; each one's utilisation and memory have own columns.
    """

    def __init__(self, path: Path, pids: Callable[[], Iterable[int]]) -> None:
        self.phase: Phase = "load"
        self._path, self._pids = path, pids
        self._gpus = gpus.handles()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample_on, daemon=True)
        self._samples: list[dict[str, Any]] = []
        self._spent_s = 0.0
        self._started = time.monotonic()

    def __enter__(self) -> "Telemetry":
        self._thread.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def fields(self) -> list[str]:
        """The columns of the file."""
        each = range(len(self._gpus)) if len(self._gpus) > 1 else ()
        return [*FIELDS, *(f"gpu{number}_{field}" for number in each for field in EACH_GPU)]

    def summary(self) -> dict[str, float]:
        """Mean and maximum of each column, and the share of one processor core that the sampling itself took.

        training_gpu_util_percent_mean leaves out what came before the first micro-step was over.
        """
        found: dict[str, float] = {}
        for field in self.fields[2:]:
            values = [sample[field] for sample in self._samples if field in sample]
            if values:
                found[f"{field}_mean"] = fmean(values)
                found[f"{field}_max"] = max(values)
        training = [sample for sample in self._samples if sample["phase"] != "load" and "gpu_util_percent" in sample]
        if training:
            found[TRAINING] = fmean(sample["gpu_util_percent"] for sample in training)
        if self._samples:
            found["sampling_core_share"] = self._spent_s / (time.monotonic() - self._started)
        return found

    def _sample_on(self) -> None:
        with self._path.open("w", newline="") as lines:
            writer = csv.DictWriter(lines, self.fields)
            writer.writeheader()
            while True:
                begun = time.thread_time()
                sample = self._sample()
                self._samples.append(sample)
                writer.writerow({key: round(value, 4) if key != "phase" else value for key, value in sample.items()})
                lines.flush()
                self._spent_s += time.thread_time() - begun
                if self._stop.wait(EVERY_S):
                    return

    def _sample(self) -> dict[str, Any]:
        return {
            "t_s": time.monotonic() - self._started,
            "phase": self.phase,
            "host_cpu_percent": psutil.cpu_percent(),
            "host_memory_gib": psutil.virtual_memory().used / GIB,
            "process_memory_gib": sum(map(resident_gib, self._pids())),
            **of_all([gpu.sample() for gpu in self._gpus]),
        }


def of_all(samples: Sequence[dict[str, float]]) -> dict[str, float]:
    """The columns of one sample of each GPU: the fields of all together, and of several GPUs some of each."""
    found = {}
    for field, together in GPU_FIELDS.items():
        if values := [sample[field] for sample in samples if field in sample]:
            found[field] = together(values)
    if len(samples) > 1:
        for number, sample in enumerate(samples):
            there = [field for field in EACH_GPU if f"gpu_{field}" in sample]
            found |= {f"gpu{number}_{field}": sample[f"gpu_{field}"] for field in there}
    return found


def resident_gib(pid: int) -> float:
    """Resident memory of a process; 0 for one that has ended."""
    try:
        return float(psutil.Process(pid).memory_info().rss / GIB)
    except psutil.Error:
        return 0.0
