"""Names of quantities and outcomes; numbers, bounds and times as text."""

from math import inf
from typing import TYPE_CHECKING

from experiments.results.memory_parts import ACTIVATIONS, GRADIENTS, OPTIMIZER, PARAMETERS

if TYPE_CHECKING:
    from experiments.results.schema import Outcome, Result
    from experiments.results.verdicts import Grade
    from experiments.suites.choices import Size
    from experiments.suites.suite import Quantity

OUTCOME_NAMES = {
    "fits": "fits",
    "oom": "out of GPU memory",
    "host_oom": "out of host memory",
    "error": "error",
    "timeout": "time limit",
    "rejected": "rejected",
}


def is_miniature_that_ran(result: "Result") -> bool:
    """Return whether the row ran to its end in miniature, which does not show that it fits the card."""
    return result.spec.size == "tiny" and result.outcome == "fits"


def outcome_in_words(outcome: "Outcome", size: "Size") -> str:
    """Return the outcome of a row: 'out of GPU memory'; 'ran (miniature)' in place of 'fits' for a miniature."""
    return "ran (miniature)" if (size, outcome) == ("tiny", "fits") else OUTCOME_NAMES[outcome]


GRADE_NAMES: "dict[Grade, str]" = {
    "measured": "measured",
    "emulated": "measured on a GPU that emulates the card",
    "predicted": "predicted",
    "miniature": "measured in miniature",
}


COMMIT_DIGITS = 12
"""Digits of a commit that are shown."""
MEMORY_UNITS = (("GiB", 1), ("MiB", 2**10), ("KiB", 2**20))
"""Units of memory, and the number of each in a GiB."""


def format_size(gib: float) -> str:
    """Format GiB with four significant digits: '38.51 GiB'. Below half a GiB use MiB, below half a MiB KiB."""
    unit, per_gib = choose_memory_unit(gib)
    return f"{gib * per_gib:.4g} {unit}"


def choose_memory_unit(gib: float) -> tuple[str, int]:
    """Return the unit that suits a size in GiB, and the number of these units in a GiB. A size of 0 is in GiB."""
    return next((one for one in MEMORY_UNITS if abs(gib) * one[1] >= 0.5), MEMORY_UNITS[-1 if gib else 0])


def format_bounds(low: float | None, high: float | None) -> str:
    """Format bounds: 'at least 2', 'at most 0.7', '13.3 to 14.7'."""
    if low is None:
        return f"at most {format_number(high or 0.0)}"
    if high is None:
        return f"at least {format_number(low)}"
    return format_number(low) if low == high else f"{format_number(low)} to {format_number(high)}"


def format_number(value: float) -> str:
    """Format a number: three significant digits, no exponent below a million."""
    if value == inf:
        return "infinitely many"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


QUANTITY_LABELS_AND_UNITS: "dict[Quantity, tuple[str, str]]" = {
    "params_gib": (PARAMETERS.name, "GiB"),
    "grads_gib": (GRADIENTS.name, "GiB"),
    "optimizer_gib": (f"{OPTIMIZER.name} state on the GPU", "GiB"),
    "optimizer_cpu_gib": (f"{OPTIMIZER.name} state in host memory", "GiB"),
    "activations_before_forward_gib": ("activations before the forward pass", "GiB"),
    "activations_gib": (ACTIVATIONS.name, "GiB"),
    "activations_after_backward_gib": ("activations after the backward pass", "GiB"),
    "allocated_after_forward_gib": ("memory after the forward pass", "GiB"),
    "largest_gpu_params_gib": (f"{PARAMETERS.name} on the GPU with the most", "GiB"),
    "peak_gib": ("peak memory", "GiB"),
    "gpu_peak_gib": ("peak GPU memory", "GiB"),
    "reserved_gib": ("reserved memory", "GiB"),
    "peak_share": ("peak memory", "of the card"),
    "reserved_share": ("reserved memory", "of the card"),
    "parameters_e9": ("number of parameters", "billion"),
    "trainable_parameters_e9": ("number of trainable parameters", "billion"),
    "oom_step": ("failed step, counted from 0", ""),
    "samples_per_step": ("samples per optimizer step", ""),
    "micro_steps_per_step": ("forward passes per optimizer step", ""),
    "planned_micro_steps": ("number of micro-steps of the full training", ""),
    "samples_per_s": ("throughput", "samples/s"),
    "step_s": ("step time", "s"),
    "train_s": ("training time", "s"),
    "mfu": ("model FLOPs utilization (MFU)", ""),
    "communication_share": ("share of a step in communication", ""),
    "gpu_idle_share": ("share of a step in which the GPU waits", ""),
    "gpu_processes": ("number of processes on the GPUs", ""),
    "gpu_util_peak_percent": ("mean of the GPUs' highest utilization", "%"),
    "gpu_util_percent": ("median utilization of the least used GPU", "%"),
    "other_gpu_util_percent": ("highest utilization of the other GPUs", "%"),
    "cpu_wait_share": ("share of the training in which GPUs wait for the CPU", ""),
    "cpu_waits_per_step": ("number of waits for the CPU per step", ""),
    "early_loss": ("mean loss of the first three optimizer steps", ""),
    "final_loss": ("loss of the last epoch", ""),
    "loss_fall": ("fall of the loss from the first epoch to the last", ""),
    "last_loss": ("loss of the last batch", ""),
}


def quantity_label(quantity: str) -> str:
    """Return what a quantity is, in words, such as 'loss of the last epoch'."""
    return QUANTITY_LABELS_AND_UNITS[quantity][0]  # type: ignore[index]


def quantity_unit(quantity: str) -> str:
    """Return the unit of a quantity, such as 'GiB'; "" if it has none."""
    return QUANTITY_LABELS_AND_UNITS[quantity][1]  # type: ignore[index]


def format_parameter_count(parameters: int) -> str:
    """Format a number of parameters: 6.74 B, 350.1 M."""
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"


def format_duration(seconds: float) -> str:
    """Format seconds: 0:07, 12:30, 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
