"""Determine a row's outcome from its exception or its printed output, and describe the reason in one line."""

import re

from experiments.results.schema import Device, Failure, Memory, Outcome, Phase
from experiments.results.wording import format_size
from experiments.system.files import GIB

LIMIT_TOLERANCE_GIB = 0.05
"""Tolerance of a comparison with the memory limit.

The allocator reserves up to 20 MiB more than is requested, and its message rounds the size.
"""
PHASE_TEXTS: dict[Phase, str] = {
    "load": "while loading",
    "forward": "in the forward pass of",
    "backward": "in the backward pass of",
    "optimizer step": "in the update of",
    "save": "while saving after",
}
BYTES_BY_UNIT = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
GPU_OOM_MESSAGE = re.compile(
    r"CUDA out of memory|CUDA error: out of memory|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY"
    r"|CU(BLAS|SPARSE|SOLVER|DNN)_STATUS_ALLOC_FAILED|Error out of memory at line|HIP out of memory"
    r"|Failed to CUDA calloc",
    re.IGNORECASE,
)
HOST_OOM_MESSAGE = re.compile(
    r"DefaultCPUAllocator: can't allocate memory|DefaultCPUAllocator: not enough memory|Cannot allocate memory"
    r"|DataLoader worker \(pid[^)]*\) is killed by signal: Killed",
)
REQUESTED_SIZE = re.compile(r"[Tt]ried to allocate ([\d.]+) ?(bytes|KiB|MiB|GiB)")


def classify_error(error: BaseException) -> Outcome:
    """Return 'oom' if GPU memory ran out, 'host_oom' if host memory ran out, else 'error'.

    If ``error`` is no out-of-memory error, the exception that caused it (__cause__) is classified.
    """
    import torch  # not at the top: the worker, which only classifies text, starts seconds faster without torch

    if isinstance(error, torch.OutOfMemoryError):
        return "oom"
    if isinstance(error, MemoryError):
        return "host_oom"
    outcome = classify_text(str(error)) if isinstance(error, RuntimeError | OSError) else "error"
    return classify_error(error.__cause__) if outcome == "error" and error.__cause__ else outcome


def classify_text(text: str) -> Outcome:
    """Return the outcome that a message of Linux or a library indicates; 'error' if it is unknown."""
    if GPU_OOM_MESSAGE.search(text):
        return "oom"
    return "host_oom" if HOST_OOM_MESSAGE.search(text) else "error"


def requested_gib(text: str) -> float | None:
    """Return the requested size in GiB from an out-of-memory message; None if the message has no size."""
    match = REQUESTED_SIZE.search(text)
    return float(match[1]) * BYTES_BY_UNIT[match[2]] / GIB if match else None


def describe_full_gpu(failure: Failure, memory: Memory, device: Device) -> str:
    """Return a message if a row ran out of memory below its own limit, because its shared GPU was full; else "".

    Such a failure does not show whether the row fits the card.
    """
    reached_gib = (memory.reserved_gib or 0.0) + (failure.requested_gib or 0.0)
    if not device.shared or device.cap_gib is None or reached_gib >= device.cap_gib - LIMIT_TOLERANCE_GIB:
        return ""
    return (
        f"the shared GPU was full when the row needed {format_size(reached_gib)} of its limit of"
        f" {format_size(device.cap_gib)}; end other programs on the GPU, or run the row without --share-gpus"
        f" ({failure.message})"
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's type if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def last_line(text: str, default: str) -> str:
    """Return the last line of ``text`` that is not blank; ``default`` if there is none."""
    return (text.strip().splitlines() or [default])[-1]


def describe_place(failure: Failure) -> str:
    """Return the phase and the step of a failure in words, such as 'in the forward pass of step 1 (counted from 0)'."""
    if failure.phase == "load":
        return PHASE_TEXTS["load"]
    return f"{PHASE_TEXTS[failure.phase]} step {failure.step} (counted from 0)"


def describe_outcome(outcome: Outcome, failure: Failure | None, memory: Memory, qualifier: str = "") -> str:
    """Describe the row's outcome in one line.

    ``qualifier`` is put before the location of the failure, such as "last seen " for a process that was killed.
    """
    if failure is None:
        return f"fits, {format_size(memory.peak_gib or 0.0)} at the peak"
    where = f"{qualifier}{describe_place(failure)}"
    if outcome == "error":
        called = f" ({failure.where})" if failure.where else ""
        return f"{failure.kind} {where}: {failure.message}{called}"
    request = "" if failure.requested_gib is None else f", {format_size(failure.requested_gib)} more requested"
    peak = "" if memory.peak_gib is None else f" (peak so far {format_size(memory.peak_gib)})"
    return f"out of {'GPU' if outcome == 'oom' else 'host'} memory {where}{request}{peak}"
