"""The quantities of reference values and claims, read from a result."""

from collections.abc import Callable
from statistics import median

from experiments.results.schema import Measured, Point, Result
from experiments.suites.suite import Quantity

Read = Callable[[Measured], float | None]


def _largest(point: Point, field: str) -> Read:
    def read(measured: Measured) -> float | None:
        values = [getattr(shot, field) for shot in measured.memory.snapshots if shot.point == point]
        return max(values, default=None)

    return read


def _settled(point: Point, field: str) -> Read:
    """Return a reader of the median at a point; the first step, without optimizer state, only if there is no other."""

    def read(measured: Measured) -> float | None:
        shots = [shot for shot in measured.memory.snapshots if shot.point == point]
        later = [shot for shot in shots if shot.step > 0]
        return median(getattr(shot, field) for shot in later or shots) if shots else None

    return read


def _speed(field: str) -> Read:
    return lambda measured: getattr(measured.speed, field) if measured.speed and measured.outcome == "fits" else None


def _train_s(measured: Measured) -> float | None:
    """Return the time of the full-length training: measured, or extrapolated from the step time of a shorter run."""
    speed = measured.speed
    if speed is None or measured.outcome != "fits" or not speed.optimizer_steps:
        return None
    if speed.micro_steps >= speed.planned_micro_steps:
        return speed.train_s
    return speed.step_s * speed.planned_micro_steps * speed.optimizer_steps / speed.micro_steps


QUANTITIES: dict[Quantity, Read] = {
    "params_gib": _largest("before forward", "params_gib"),
    "grads_gib": _largest("after backward", "grads_gib"),
    "optimizer_gib": _largest("after optimizer step", "optimizer_gib"),
    "optimizer_cpu_gib": _largest("after optimizer step", "optimizer_cpu_gib"),
    "activations_gib": _largest("after forward", "activations_gib"),
    "allocated_after_forward_gib": _settled("after forward", "allocated_gib"),
    "peak_gib": lambda measured: measured.memory.peak_gib,
    "reserved_gib": lambda measured: measured.memory.reserved_gib,
    "samples_per_s": _speed("samples_per_s"),
    "step_s": _speed("step_s"),
    "train_s": _train_s,
    "communication_share": _speed("communication_share"),
    "gpu_idle_share": _speed("gpu_idle_share"),
    "final_loss": lambda measured: measured.losses[-1] if measured.losses else None,
}
TIMES: tuple[Quantity, ...] = ("samples_per_s", "step_s", "train_s", "communication_share", "gpu_idle_share")
LOSSES: tuple[Quantity, ...] = ("final_loss",)


def value_of(quantity: Quantity, result: Result) -> float | None:
    """Return the row's value: for memory the maximum over its ranks, otherwise the row's own."""
    if quantity in (*TIMES, *LOSSES):
        return QUANTITIES[quantity](result)
    return max(values_of_ranks(quantity, result), default=None)


def values_of_ranks(quantity: Quantity, result: Result) -> list[float]:
    """Return the value of each rank that has one; for a row with one process, its own."""
    values = [QUANTITIES[quantity](measured) for measured in result.ranks or (result,)]
    return [value for value in values if value is not None]
