"""What GPU and host do while a row runs, sampled in another process so that it costs the trainer nothing."""

import csv
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pynvml

from experiments.result import GIB

EVERY_S = 0.5
GPU_FIELDS = (
    "gpu_util_percent",
    "gpu_memory_gib",
    "gpu_power_w",
    "gpu_sm_clock_mhz",
    "gpu_temperature_c",
    "gpu_processes",
)
FIELDS = ("t_s", *GPU_FIELDS, "host_cpu_percent", "host_memory_gib", "process_memory_gib")


class Telemetry:
    """Samples twice a second into a CSV file from ``with`` to its end; summary() has means and maxima.

    t_s is seconds since the start, process_memory_gib the resident memory of the trainer process. GPU columns are empty
    without a GPU.
    """

    def __init__(self, path: Path, pid: int) -> None:
        self._path, self._process = path, psutil.Process(pid)
        self._gpu = gpu_handle()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample_on, daemon=True)
        self._samples: list[dict[str, float]] = []
        self._spent_s = 0.0
        self._started = time.monotonic()

    def __enter__(self) -> "Telemetry":
        self._thread.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._stop.set()
        self._thread.join()

    def summary(self) -> dict[str, float]:
        """Mean and maximum of each column, and the share of one processor core that the sampling itself took."""
        found: dict[str, float] = {}
        for field in FIELDS[1:]:
            values = [sample[field] for sample in self._samples if field in sample]
            if values:
                found[f"{field}_mean"] = sum(values) / len(values)
                found[f"{field}_max"] = max(values)
        if self._samples:
            found["sampling_core_share"] = self._spent_s / (time.monotonic() - self._started)
        return found

    def _sample_on(self) -> None:
        with self._path.open("w", newline="") as lines:
            writer = csv.DictWriter(lines, FIELDS)
            writer.writeheader()
            while True:
                begun = time.thread_time()
                sample = self._sample()
                self._samples.append(sample)
                writer.writerow({key: round(value, 4) for key, value in sample.items()})
                lines.flush()
                self._spent_s += time.thread_time() - begun
                if self._stop.wait(EVERY_S):
                    return

    def _sample(self) -> dict[str, float]:
        sample = {
            "t_s": time.monotonic() - self._started,
            "host_cpu_percent": psutil.cpu_percent(),
            "host_memory_gib": psutil.virtual_memory().used / GIB,
        }
        with suppress(psutil.Error):
            sample["process_memory_gib"] = self._process.memory_info().rss / GIB
        if self._gpu is not None:
            sample |= gpu_sample(self._gpu)
        return sample


def gpu_handle() -> Any:
    """NVML's handle of the first GPU that CUDA_VISIBLE_DEVICES leaves visible; None without a GPU."""
    try:
        pynvml.nvmlInit()
        if pynvml.nvmlDeviceGetCount() == 0:
            return None
    except pynvml.NVMLError:
        return None
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if not first:
        return None
    if first.isdigit():
        return pynvml.nvmlDeviceGetHandleByIndex(int(first))
    return pynvml.nvmlDeviceGetHandleByUUID(first)


def gpu_sample(handle: Any) -> dict[str, float]:
    """What NVML says of a GPU now; a value that the card does not give is left out."""
    readings = {
        "gpu_util_percent": lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu,
        "gpu_memory_gib": lambda: pynvml.nvmlDeviceGetMemoryInfo(handle).used / GIB,
        "gpu_power_w": lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        "gpu_sm_clock_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
        "gpu_temperature_c": lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
        "gpu_processes": lambda: len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle)),
    }
    sample = {}
    for field, read in readings.items():
        with suppress(pynvml.NVMLError):
            sample[field] = float(read())
    return sample
