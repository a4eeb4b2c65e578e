"""The measured values and facts of a row, by which runs are compared."""

from collections.abc import Mapping
from math import isfinite, sqrt
from typing import Any, NamedTuple

from experiments.results.quantities import ABSOLUTE_TIME_QUANTITIES, value_of
from experiments.results.run_folder import Run
from experiments.results.schema import Result
from experiments.suites.suite import Quantity

RECORDED_QUANTITIES: tuple[Quantity, ...] = (
    "peak_gib",
    "reserved_gib",
    "allocated_after_forward_gib",
    "params_gib",
    "grads_gib",
    "optimizer_gib",
    "optimizer_cpu_gib",
    "activations_gib",
    "parameters_e9",
    "trainable_parameters_e9",
    "samples_per_step",
    "step_s",
    "samples_per_s",
    "final_loss",
    "last_loss",
)
NORMAL_IQR = 1.349
"""Interquartile range of a normal distribution, in standard deviations."""
MEDIAN_ERROR_FACTOR = 1.2533
"""Standard error of the median divided by that of the mean, for a normal distribution: square root of pi/2."""
MIN_MEASURED_MICRO_STEPS = 3
"""Minimum number of micro-steps for a meaningful spread."""


class MeasuredValue(NamedTuple):
    """A value of a row. spread: standard error of the value, computed from its variation between steps; None: unknown.

    Only times have a known spread.
    """

    value: float
    spread: float | None


def measured_values(result: Result) -> dict[str, MeasuredValue]:
    """Return the measured values of a row by quantity, without NaN and infinite values."""
    values = {quantity: value_of(quantity, result) for quantity in RECORDED_QUANTITIES}
    return {
        quantity: MeasuredValue(value, _standard_error(quantity, value, result))
        for quantity, value in values.items()
        if value is not None and isfinite(value)
    }


def values_of_rows(results: Mapping[str, Result]) -> dict[tuple[str, str], MeasuredValue]:
    """Return the measured values of several rows, by row and quantity."""
    return {(row, name): one for row, result in results.items() for name, one in measured_values(result).items()}


def step_deviations(result: Result) -> dict[str, float]:
    """Return the standard deviation between steps for each quantity of time, in the unit of the quantity.

    Return no deviations if too few steps were measured.
    """
    speed = result.speed
    if speed is None or speed.measured_micro_steps < MIN_MEASURED_MICRO_STEPS:
        return {}
    values = {quantity: value_of(quantity, result) for quantity in ABSOLUTE_TIME_QUANTITIES}
    return {name: value * speed.spread / NORMAL_IQR for name, value in values.items() if value is not None}


def _standard_error(quantity: Quantity, value: float, result: Result) -> float | None:
    if quantity not in ABSOLUTE_TIME_QUANTITIES or result.speed is None or not result.speed.measured_micro_steps:
        return None
    deviation = result.speed.spread / NORMAL_IQR
    return value * deviation * MEDIAN_ERROR_FACTOR / sqrt(result.speed.measured_micro_steps)


def outcome_facts(result: Result) -> dict[str, str]:
    """Return the facts of a row that must not change between runs: outcome, memory limit, longest text, settings."""
    failure = result.failure
    return {
        "outcome": result.outcome,
        "failure": f"{failure.phase} ({failure.kind})" if failure else "",
        "memory limit": f"{result.device.cap_gib:.2f} GiB" if result.device.cap_gib else "none",
        "longest text": str(result.max_tokens or ""),
        **{name: str(value) for name, value in result.spec.settings.model_dump(mode="json").items()},
    }


def possible_causes(run: Run, result: Result) -> dict[str, str]:
    """Return facts of a row that may cause a change: versions, code, device, node and data."""
    device = result.device
    causes: dict[str, Any] = {
        "suite version": run.recipe_version,
        "commit": result.git_commit,
        "training code": result.code,
        "image": result.image,
        "device": f"{device.count} x {device.name}",
        "driver": device.driver,
        "CUDA": device.cuda,
        "node": run.host,
        "data": run.data,
        "data SHA-256": run.data_sha256,
        "data version": result.data_commit,
        "weights version": result.weights_commit,
        **result.versions,
    }
    return {name: str(value or "") for name, value in causes.items()}
