"""Compute the load of the GPUs while a row trains, from telemetry.csv. All functions but read_samples are pure."""

import csv
from collections.abc import Mapping, Sequence
from io import StringIO
from itertools import pairwise
from math import isfinite
from pathlib import Path
from statistics import fmean, median

from experiments.results.schema import Speed
from provision.files import read_text

Sample = Mapping[str, float | str]

UTILIZATION = "gpu_util_percent"
TRAINING_UTILIZATION = "training_gpu_util_percent_mean"
STEADY_UTILIZATION = "steady_gpu_util_percent"
PROCESSES = "gpu_processes_of_all_gpus"
OTHER_UTILIZATION = "other_gpu_util_percent"
CPU_WAIT_SHARE = "cpu_wait_share"
CPU_WAIT_INTERVAL = "cpu_wait_interval_s"
UTILIZATION_PERIOD_S = 1.0
"""A sample's utilization is a mean over at most this time before the sample (nvmlDeviceGetUtilizationRates)."""
MIN_STEADY_SAMPLES = 3
"""Minimum number of samples for a meaningful median."""
MIN_STEADY_S = 3.0
"""How long the steps after the warm-up must last to give enough samples for a median, at two samples per second."""
IDLE_BELOW_PERCENT = 5.0
"""A GPU with less utilization counts as idle."""
BUSY_CPU_FROM_PERCENT = 50.0
"""The host's processors count as busy from this utilization on."""


def gpu_load(
    samples: Sequence[Sample], speed: Speed | None, steady_s: tuple[float, float] | None = None
) -> dict[str, float]:
    """Return the GPU load as a mapping of names to values. Values that the samples do not contain are left out.

    speed: speed of the row; None: not measured. steady_gpu_util_percent: median utilization during the steps after the
    warm-up, of the GPU with the lowest median. steady_s: start and end of these steps in seconds; None for results of
    earlier versions: then all steps but the first are used. cpu_wait_share: share of the training during which all GPUs
    are idle and the host's processors are busy. cpu_wait_interval_s: median seconds from the start of one such wait to
    the next. other_gpu_util_percent_max: highest utilization of the machine's GPUs that neither the row nor another
    program uses.
    """
    training = training_samples(samples, speed)
    load = {}
    if utilization := training_utilization(samples):
        load[TRAINING_UTILIZATION] = fmean(utilization)
    steady = steady_samples(samples, *steady_s) if steady_s else training
    medians = [
        median(values) for column in _gpu_columns(steady, "util_percent") if (values := _column_values(steady, column))
    ]
    if medians:
        load[STEADY_UTILIZATION] = min(medians)
    if other := _column_values(training, OTHER_UTILIZATION):
        load[f"{OTHER_UTILIZATION}_max"] = max(other)
    return load | _cpu_waits(_samples_until_last_work(_samples_after_first_micro_step(samples)))


def training_samples(samples: Sequence[Sample], speed: Speed | None) -> list[Sample]:
    """Return the samples from the end of the first micro-step to the end of the last step.

    Without ``speed``, as for a row that ran out of memory, the last sample is the last one in which all GPUs are busy.
    """
    trained = _samples_after_first_micro_step(samples)
    if not trained or not speed:
        return _samples_until_last_work(trained)
    last_s = float(trained[0]["t_s"]) + speed.step_s * max(speed.optimizer_steps - 1, 1)
    return [sample for sample in trained if float(sample["t_s"]) <= last_s]


def steady_samples(samples: Sequence[Sample], begin_s: float, end_s: float) -> list[Sample]:
    """Return the samples whose utilization covers only the time from begin_s to end_s; [] if they are too few."""
    first_s = begin_s + UTILIZATION_PERIOD_S
    steady = [sample for sample in samples if UTILIZATION in sample and first_s <= float(sample["t_s"]) <= end_s]
    return steady if len(steady) >= MIN_STEADY_SAMPLES else []


def _samples_after_first_micro_step(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples with a utilization after the first micro-step. Until its end, the phase is 'load'."""
    return [sample for sample in samples if sample.get("phase", "load") != "load" and UTILIZATION in sample]


def _samples_until_last_work(samples: list[Sample]) -> list[Sample]:
    """Return the samples up to the last sample in which all GPUs are busy; all samples if no sample is."""
    busy = [number for number, sample in enumerate(samples, 1) if min(_values_of_gpus(sample, "util_percent"))]
    return samples[: busy[-1]] if busy else samples


def training_utilization(samples: Sequence[Sample]) -> list[float]:
    """Return the GPU utilization of each sample from the first micro-step to the last time that a GPU worked."""
    values = _column_values(_samples_after_first_micro_step(samples), UTILIZATION)
    busy = [number for number, value in enumerate(values, 1) if value]
    return values[: busy[-1]] if busy else values


def read_samples(path: Path) -> list[dict[str, float | str]]:
    """Read the samples of a telemetry.csv without empty and invalid values; [] if it is missing or not a CSV file."""
    try:
        rows = list(csv.DictReader(StringIO(read_text(path, errors="replace"), newline="")))
    except (OSError, csv.Error):
        return []
    lines = [
        {key: value for key, text in row.items() if (value := _sample_value(key, text)) is not None} for row in rows
    ]
    return [sample for sample in lines if "t_s" in sample]


def _sample_value(column: str | None, text: object) -> float | str | None:
    if column is None or not isinstance(text, str):
        return None
    if column == "phase":
        return text
    try:
        value = float(text)
    except ValueError:
        return None
    return value if isfinite(value) else None


def _cpu_waits(training: Sequence[Sample]) -> dict[str, float]:
    """Return the share of samples with idle GPUs and busy processors, and the median seconds between such waits."""
    known = [sample for sample in training if "host_cpu_percent" in sample]
    waiting = [
        float(sample[UTILIZATION]) < IDLE_BELOW_PERCENT and float(sample["host_cpu_percent"]) >= BUSY_CPU_FROM_PERCENT
        for sample in known
    ]
    if not known:
        return {}
    times = [float(sample["t_s"]) for sample in known]
    starts = [time for time, before, now in zip(times[1:], waiting, waiting[1:], strict=False) if now and not before]
    load = {CPU_WAIT_SHARE: fmean(waiting)}
    if len(starts) > 1:
        load[CPU_WAIT_INTERVAL] = median(later - earlier for earlier, later in pairwise(starts))
    return load


def _gpu_columns(samples: Sequence[Sample], field: str) -> list[str]:
    """Return the names of the columns of ``field``: one for each GPU; with a single GPU, the one without a number."""
    numbered = [column for column in (samples[0] if samples else ()) if _is_gpu_column(column, field)]
    return numbered or [f"gpu_{field}"]


def _values_of_gpus(sample: Sample, field: str) -> list[float]:
    return [float(sample[column]) for column in _gpu_columns([sample], field) if column in sample]


def _is_gpu_column(column: str, field: str) -> bool:
    return column.startswith("gpu") and column.endswith(f"_{field}") and column[3 : -len(field) - 1].isdigit()


def _column_values(samples: Sequence[Sample], column: str) -> list[float]:
    return [float(sample[column]) for sample in samples if column in sample]
