"""How a row ended, read from what was raised or printed: out of memory is told from every other failure."""

import re

from experiments.results.schema import Failure, Memory, Outcome
from experiments.system.files import GIB

UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
GPU_MESSAGES = re.compile(
    r"CUDA out of memory|CUDA error: out of memory|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY"
    r"|CU(BLAS|SPARSE|SOLVER|DNN)_STATUS_ALLOC_FAILED|Error out of memory at line|HIP out of memory"
    r"|Failed to CUDA calloc",
    re.IGNORECASE,
)
HOST_MESSAGES = re.compile(
    r"DefaultCPUAllocator: can't allocate memory|DefaultCPUAllocator: not enough memory|Cannot allocate memory"
    r"|DataLoader worker \(pid[^)]*\) is killed by signal: Killed",
)
REQUEST = re.compile(r"[Tt]ried to allocate ([\d.]+) ?(bytes|KiB|MiB|GiB)")


def ending_of(error: BaseException) -> Outcome:
    """'oom' for the GPU's memory, 'host_oom' for the host's, else that of what caused the error, else 'error'."""
    import torch  # not above: the worker, which reads texts alone, starts seconds sooner without

    if isinstance(error, torch.OutOfMemoryError):
        return "oom"
    if isinstance(error, MemoryError):
        return "host_oom"
    ending = ending_of_text(str(error)) if isinstance(error, RuntimeError | OSError) else "error"
    return ending_of(error.__cause__) if ending == "error" and error.__cause__ else ending


def ending_of_text(text: str) -> Outcome:
    """The same for what a kernel or a library printed before it gave up."""
    if GPU_MESSAGES.search(text):
        return "oom"
    return "host_oom" if HOST_MESSAGES.search(text) else "error"


def requested_gib(text: str) -> float | None:
    """The size of the allocation that a message names, GiB; None where it names none."""
    found = REQUEST.search(text)
    return float(found[1]) * UNITS[found[2]] / GIB if found else None


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type when it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def reason_of(outcome: Outcome, failure: Failure | None, memory: Memory, seen: str = "") -> str:
    """How a row ended, in one plain line; ``seen`` stands before where, for one that could not say so itself."""
    if failure is None:
        return f"fits, {memory.peak_gib:.3g} GiB at the peak"
    where = (
        f"{seen}in the {failure.phase} of step {failure.step}" if failure.phase != "load" else f"{seen}while loading"
    )
    if outcome == "error":
        return f"{failure.kind} {where}: {failure.message}"
    asked = "" if failure.requested_gib is None else f", {failure.requested_gib:.3g} GiB more were asked for"
    held = "" if memory.peak_gib is None else f" (peak so far {memory.peak_gib:.3g} GiB)"
    return f"out of {'GPU' if outcome == 'oom' else 'host'} memory {where}{asked}{held}"
