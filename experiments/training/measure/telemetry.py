"""Sample the utilization of GPU and host while a row runs.

The worker's process takes the samples, so that sampling does not slow down the training.
"""

import csv
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil

from experiments.results.gpu_load import OTHER_UTILIZATION, PROCESSES, gpu_load
from experiments.results.schema import SHARED_GPU_VARIABLE, Phase, Speed
from experiments.system.files import GIB
from provision.hardware import gpus

SAMPLE_INTERVAL_S = 0.5
GPU_FIELDS: dict[str, Callable[[Iterable[float]], float]] = {
    "gpu_util_percent": fmean,
    "gpu_memory_gib": max,
    "gpu_power_w": sum,
    "gpu_sm_clock_mhz": fmean,
    "gpu_temperature_c": max,
    "gpu_processes": max,
}
DEVICE_FIELDS = ("gpu_sm_clock_mhz", "gpu_temperature_c")
"""GPU columns that do not depend on how many rows use the GPU."""
PER_GPU_FIELDS = ("util_percent", "memory_gib")
FIELDS = ("t_s", "phase", *GPU_FIELDS, PROCESSES, "host_cpu_percent", "host_memory_gib", "process_memory_gib")


class TelemetrySampler:
    """Context manager that writes a sample to a CSV file twice a second; summary() returns means and maxima.

    Columns: t_s, seconds since ``started``, the row's start on the monotonic clock; phase, the training's phase, which
    the caller sets; process_memory_gib, resident memory of the row's ranks; other_gpu_util_percent, the highest load of
    the GPUs that are not assigned to the row. GPUs that other programs use are left out of it.

    GPU columns are empty without a GPU. With several GPUs, utilization and clocks are means, power is the sum, and all
    other values are maxima. Utilization and memory also have a column for each GPU. If the row shares its GPU, load and
    power are empty. GPU memory and processes are then those of the row; they are empty if the driver does not report
    them by process.
    """

    def __init__(self, path: Path, pids: Callable[[], Iterable[int]], started: float) -> None:
        self.phase: Phase = "load"
        self._path, self._pids = path, pids
        self._gpus = gpus.visible_gpus()
        self._load_of_others = gpus.make_load_reader_of_other_gpus()
        self._shared = SHARED_GPU_VARIABLE in os.environ
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample_until_stopped, daemon=True)
        self._samples: list[dict[str, Any]] = []
        self._sampling_s = 0.0
        self._started = started

    def __enter__(self) -> "TelemetrySampler":
        self._thread.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def fields(self) -> list[str]:
        """The columns of the CSV file."""
        gpus = range(len(self._gpus)) if len(self._gpus) > 1 else ()
        return [*FIELDS, OTHER_UTILIZATION, *(f"gpu{number}_{field}" for number in gpus for field in PER_GPU_FIELDS)]

    def summary(
        self, speed: Speed | None = None, steady_interval_s: tuple[float, float] | None = None
    ) -> dict[str, float]:
        """Return mean and maximum of each column, the share of a CPU core used for sampling, and the training's load.

        The load is defined in results/gpu_load.py, which uses ``speed`` and ``steady_interval_s`` to select the samples
        of the training. steady_interval_s: begin and end of the steps after the warm-up, in seconds after the start.
        """
        summary: dict[str, float] = {}
        for field in self.fields[2:]:
            values = [sample[field] for sample in self._samples if field in sample]
            if values:
                summary[f"{field}_mean"] = fmean(values)
                summary[f"{field}_max"] = max(values)
        if self._samples:
            summary["sampling_core_share"] = self._sampling_s / (time.monotonic() - self._started)
        return summary | gpu_load(self._samples, speed, steady_interval_s)

    def _sample_until_stopped(self) -> None:
        with self._path.open("w", newline="") as lines:
            writer = csv.DictWriter(lines, self.fields)
            writer.writeheader()
            while True:
                start = time.thread_time()
                sample = self._sample()
                self._samples.append(sample)
                writer.writerow({key: round(value, 4) if key != "phase" else value for key, value in sample.items()})
                lines.flush()
                self._sampling_s += time.thread_time() - start
                if self._stop.wait(SAMPLE_INTERVAL_S):
                    return

    def _sample_gpu(self, gpu: gpus.GpuHandle, pids: Collection[int]) -> dict[str, float]:
        return values_of_row(pids, gpu.sample(), gpu.process_gib()) if self._shared else gpu.sample()

    def _sample(self) -> dict[str, Any]:
        pids = tuple(self._pids())
        samples = [self._sample_gpu(gpu, pids) for gpu in self._gpus]
        other = self._load_of_others(pids)
        return {
            "t_s": time.monotonic() - self._started,
            "phase": self.phase,
            "host_cpu_percent": psutil.cpu_percent(),
            "host_memory_gib": psutil.virtual_memory().used / GIB,
            "process_memory_gib": sum(map(resident_gib, pids)),
            **combine_gpus(samples),
            **total_processes(samples),
            **({} if other is None else {OTHER_UTILIZATION: other}),
        }


def values_of_row(pids: Collection[int], sample: dict[str, float], process_gib: dict[int, float]) -> dict[str, float]:
    """Return the values of a shared GPU that hold for one row: device values, and the row's memory and processes.

    pids: the row's processes. sample: values of the whole GPU, by column. process_gib: memory of each process on the
    GPU, GiB, by process id.
    """
    columns = {field: sample[field] for field in DEVICE_FIELDS if field in sample}
    if own := [process_gib[pid] for pid in pids if pid in process_gib]:
        columns |= {"gpu_memory_gib": sum(own), "gpu_processes": len(own)}
    return columns


def total_processes(samples: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the number of processes on all GPUs as a column; empty if a GPU does not report its processes."""
    if not samples or any("gpu_processes" not in sample for sample in samples):
        return {}
    return {PROCESSES: sum(sample["gpu_processes"] for sample in samples)}


def combine_gpus(samples: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the GPU columns of one sample: the combined values, and for several GPUs also some values of each GPU."""
    columns = {}
    for field, combine in GPU_FIELDS.items():
        if values := [sample[field] for sample in samples if field in sample]:
            columns[field] = combine(values)
    if len(samples) > 1:
        for number, sample in enumerate(samples):
            available = [field for field in PER_GPU_FIELDS if f"gpu_{field}" in sample]
            columns |= {f"gpu{number}_{field}": sample[f"gpu_{field}"] for field in available}
    return columns


def resident_gib(pid: int) -> float:
    """Return the resident memory of a process in GiB; 0 if it has ended."""
    try:
        return float(psutil.Process(pid).memory_info().rss / GIB)
    except psutil.Error:
        return 0.0
