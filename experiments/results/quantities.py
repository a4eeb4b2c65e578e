"""The quantities of reference values and claims, read from a result."""

from collections.abc import Callable
from statistics import fmean, median

from experiments.results.gpu_load import (
    CPU_WAIT_INTERVAL,
    CPU_WAIT_SHARE,
    OTHER_UTILIZATION,
    PROCESSES,
    STEADY_UTILIZATION,
)
from experiments.results.memory_parts import StepPoint
from experiments.results.schema import Device, Measured, Result
from experiments.suites.cards import cards
from experiments.suites.schema import EARLY_LOSS, LOSS_FALL
from experiments.suites.suite import Quantity

Reader = Callable[[Measured], float | None]

EARLY_STEPS = 3
"""Optimizer steps that every run has: two warm-up steps, and at least one timed step."""


def _maximum_reader(point: StepPoint, field: str) -> Reader:
    def read_maximum(measured: Measured) -> float | None:
        values = [getattr(shot, field) for shot in measured.memory.snapshots if shot.point == point]
        return max(values, default=None)

    return read_maximum


def _median_reader(point: StepPoint, field: str) -> Reader:
    """Return a function that reads the median of a field at a point of the step.

    The first step, without optimizer state, counts only if there is no other.
    """

    def read_median(measured: Measured) -> float | None:
        shots = [shot for shot in measured.memory.snapshots if shot.point == point]
        later = [shot for shot in shots if shot.step > 0]
        return median(getattr(shot, field) for shot in later or shots) if shots else None

    return read_median


def _speed_reader(field: str) -> Reader:
    return lambda measured: getattr(measured.speed, field) if measured.speed and measured.outcome == "fits" else None


def _train_s(measured: Measured) -> float | None:
    """Return the time of the full-length training, extrapolated from the measured steps, without the warm-up.

    So a complete training can be compared with a training of which only some steps ran.
    """
    speed = measured.speed
    if speed is None or measured.outcome != "fits" or not speed.optimizer_steps:
        return None
    return speed.step_s * speed.planned_micro_steps * speed.optimizer_steps / speed.micro_steps


def _card_share_reader(field: str) -> Reader:
    """Return a function that reads a peak as a share of the memory that the process may allocate on its GPUs."""

    def read_share(measured: Measured) -> float | None:
        peak, usable = getattr(measured.memory, field), _usable_gib(measured.device)
        gpus = measured.spec.settings.gpus_per_rank if isinstance(measured, Result) else 1
        return peak / (usable * gpus) if peak is not None and usable and gpus else None

    return read_share


def _usable_gib(device: Device) -> float | None:
    card = cards().get(device.card or "")
    return device.cap_gib or (card.usable_gib if card else device.memory_gib)


def _billions_reader(field: str) -> Reader:
    def read_billions(measured: Measured) -> float | None:
        count = getattr(measured, field)
        return None if count is None else count / 1e9

    return read_billions


def _oom_step(measured: Measured) -> float | None:
    return measured.failure.step if measured.failure and measured.outcome == "oom" else None


def _samples_per_step(measured: Measured) -> float | None:
    return measured.spec.settings.global_batch_size if isinstance(measured, Result) else None


def _micro_steps_per_step(measured: Measured) -> float | None:
    counts = measured.step_counts
    return counts.micro_steps / counts.optimizer_steps if counts and counts.optimizer_steps else None


def _planned_micro_steps(measured: Measured) -> float | None:
    return measured.step_counts.planned_micro_steps if measured.step_counts else None


def _telemetry_reader(key: str) -> Reader:
    return lambda measured: measured.telemetry.get(key) if isinstance(measured, Result) else None


def _gpu_processes(measured: Measured) -> float | None:
    """Return the number of processes on all GPUs of a row, estimated if only the maximum on one GPU is recorded."""
    if not isinstance(measured, Result):
        return None
    on_one = measured.telemetry.get("gpu_processes_max")
    return measured.telemetry.get(f"{PROCESSES}_max", on_one and on_one * measured.device.count)


def _cpu_waits_per_step(measured: Measured) -> float | None:
    interval_s = _telemetry_reader(CPU_WAIT_INTERVAL)(measured)
    return measured.speed.step_s / interval_s if measured.speed and interval_s else None


def _early_loss(measured: Measured) -> float | None:
    """Return the mean loss of the first EARLY_STEPS optimizer steps.

    The samples of these steps are the same for any number of micro-steps per optimizer step.
    """
    count = EARLY_STEPS * (measured.spec.settings.accumulate if isinstance(measured, Result) else 1)
    return fmean(measured.losses[:count]) if len(measured.losses) >= count else None


def _final_loss(measured: Measured) -> float | None:
    """Return the mean loss of the last epoch, as labs print it. A shortened training counts as one epoch."""
    losses = measured.losses
    if not losses:
        return None
    return fmean(losses[-max(1, len(losses) // _epochs(measured)) :])


def _loss_fall(measured: Measured) -> float | None:
    """Return the relative decrease of the mean loss from the first to the last epoch; None for one epoch."""
    epochs, losses = _epochs(measured), measured.losses
    length = len(losses) // epochs
    if epochs < 2 or not length:
        return None
    return 1 - fmean(losses[-length:]) / fmean(losses[:length])


def _epochs(measured: Measured) -> int:
    """Return the number of complete epochs of a row; 1 for a rank, and for a training that is not at full length."""
    if not isinstance(measured, Result) or measured.spec.length != "as-taught":
        return 1
    settings = measured.spec.settings
    return settings.max_epochs if settings.max_steps < 0 else 1


QUANTITIES: dict[Quantity, Reader] = {
    "params_gib": _maximum_reader("before forward", "params_gib"),
    "grads_gib": _maximum_reader("after backward", "grads_gib"),
    "optimizer_gib": _maximum_reader("after optimizer step", "optimizer_gib"),
    "optimizer_cpu_gib": _maximum_reader("after optimizer step", "optimizer_cpu_gib"),
    "activations_before_forward_gib": _maximum_reader("before forward", "activations_gib"),
    "activations_gib": _maximum_reader("after forward", "activations_gib"),
    "activations_after_backward_gib": _maximum_reader("after backward", "activations_gib"),
    "allocated_after_forward_gib": _median_reader("after forward", "allocated_gib"),
    "largest_gpu_params_gib": lambda measured: max(measured.memory.params_by_gpu_gib, default=None),
    "peak_gib": lambda measured: measured.memory.peak_gib,
    "gpu_peak_gib": lambda measured: measured.memory.peak_gib if measured.device.kind == "cuda" else 0.0,
    "reserved_gib": lambda measured: measured.memory.reserved_gib,
    "peak_share": _card_share_reader("peak_gib"),
    "reserved_share": _card_share_reader("reserved_gib"),
    "parameters_e9": _billions_reader("parameters"),
    "trainable_parameters_e9": _billions_reader("trainable_parameters"),
    "oom_step": _oom_step,
    "samples_per_step": _samples_per_step,
    "micro_steps_per_step": _micro_steps_per_step,
    "planned_micro_steps": _planned_micro_steps,
    "samples_per_s": _speed_reader("samples_per_s"),
    "step_s": _speed_reader("step_s"),
    "train_s": _train_s,
    "mfu": _speed_reader("peak_share"),
    "communication_share": _speed_reader("communication_share"),
    "gpu_idle_share": _speed_reader("gpu_idle_share"),
    "gpu_processes": _gpu_processes,
    "gpu_util_peak_percent": _telemetry_reader("gpu_util_percent_max"),
    "gpu_util_percent": _telemetry_reader(STEADY_UTILIZATION),
    "other_gpu_util_percent": _telemetry_reader(f"{OTHER_UTILIZATION}_max"),
    "cpu_wait_share": _telemetry_reader(CPU_WAIT_SHARE),
    "cpu_waits_per_step": _cpu_waits_per_step,
    "early_loss": _early_loss,
    "final_loss": _final_loss,
    "loss_fall": _loss_fall,
    "last_loss": lambda measured: measured.losses[-1] if measured.losses else None,
}
MIN_LOSS_FALL = 5e-4
"""A smaller fall is noise: at a learning rate of nearly zero, dropout alone changes the loss by a share of 1e-4."""
ABSOLUTE_TIME_QUANTITIES: tuple[Quantity, ...] = ("samples_per_s", "step_s", "train_s")
TIME_QUANTITIES: tuple[Quantity, ...] = (*ABSOLUTE_TIME_QUANTITIES, "mfu", "communication_share", "gpu_idle_share")
LOSS_QUANTITIES: tuple[Quantity, ...] = (EARLY_LOSS, "final_loss", "last_loss", LOSS_FALL)
LOAD_QUANTITIES: tuple[Quantity, ...] = (
    "gpu_processes",
    "gpu_util_peak_percent",
    "gpu_util_percent",
    "other_gpu_util_percent",
    "cpu_wait_share",
    "cpu_waits_per_step",
)
"""Load of GPUs and processes, as nvtop shows it: one value for the whole row."""
ESTIMATED_QUANTITIES: tuple[Quantity, ...] = (*TIME_QUANTITIES, "gpu_util_percent")
"""Quantities that are predicted with a stated error."""
STEP_QUANTITIES: tuple[Quantity, ...] = ("micro_steps_per_step", "planned_micro_steps")
GPU_SHARES: dict[Quantity, float] = {"gpu_idle_share": 1.0, "gpu_util_percent": 100.0}
"""Quantities that are shares of GPU time, each with the value that means all of the time: 1 or 100."""
COUNT_QUANTITIES: tuple[Quantity, ...] = (
    "parameters_e9",
    "trainable_parameters_e9",
    "oom_step",
    "samples_per_step",
    *STEP_QUANTITIES,
)
ROW_QUANTITIES: tuple[Quantity, ...] = (*TIME_QUANTITIES, *LOSS_QUANTITIES, *LOAD_QUANTITIES, *COUNT_QUANTITIES)
"""Quantities that have one value per row. All other quantities have one value per rank."""


def is_lower_bound(quantity: Quantity, result: Result) -> bool:
    """Return whether the value is only a lower bound of the row's need, because the row ran out of memory.

    Lower bounds are reserved memory, which is always limited by the card, and measured peaks. Predicted peaks are
    computed with unlimited capacity.
    """
    reserved = ("reserved_gib", "reserved_share")
    limited = reserved if result.predicted else (*reserved, "peak_gib", "peak_share")
    return result.outcome == "oom" and quantity in limited


def value_of(quantity: Quantity, result: Result) -> float | None:
    """Return the value of a quantity: the row's single value for ROW_QUANTITIES, else the maximum over the row's ranks.

    Return None if the result does not have the quantity.
    """
    if quantity in ROW_QUANTITIES:
        return QUANTITIES[quantity](result)
    return max(values_of_ranks(quantity, result), default=None)


def values_of_ranks(quantity: Quantity, result: Result) -> list[float]:
    """Return the values of all ranks that have the quantity; for a row with one process, the value of the row."""
    values = [QUANTITIES[quantity](measured) for measured in result.ranks or (result,)]
    return [value for value in values if value is not None]
