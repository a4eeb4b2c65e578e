import pytest
import torch

from experiments.results.run_folder import RunFolder
from experiments.results.schema import Failure, Memory
from experiments.training.failures import (
    classify_error,
    classify_text,
    describe_full_gpu,
    describe_outcome,
    first_line,
    requested_gib,
)
from tests.support.results.evidence import RUNS
from tests.support.results.in_memory import EMULATING_GPU

GPU = (
    "CUDA out of memory. Tried to allocate 194.00 MiB. GPU 0 has a total capacity of 79.15 GiB",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "Error out of memory at line 380 in file /src/csrc/pythonInterface.cpp",
    "cudaErrorMemoryAllocation: out of memory",
    "Failed to CUDA calloc async 608 bytes",
)
HOST = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    " 4294967296 bytes. Error code 12 (Cannot allocate memory)",
    "DataLoader worker (pid 4711) is killed by signal: Killed. ",
    "[Errno 12] Cannot allocate memory",
)
OTHER = (
    "",
    "CUDA error: an illegal memory access was encountered",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)",
    "DataLoader worker (pid 4711) is killed by signal: Segmentation fault. ",
)
MESSAGES = [
    (text, outcome) for texts, outcome in ((GPU, "oom"), (HOST, "host_oom"), (OTHER, "error")) for text in texts
]

STEP_0, STEP_1 = "step 0 (counted from 0)", "step 1 (counted from 0)"


@pytest.mark.parametrize(("text", "outcome"), MESSAGES)
def test_out_of_memory_is_recognized_by_its_message(text, outcome):
    assert classify_text(f"Traceback\n{text}\n") == outcome
    assert classify_error(RuntimeError(text)) == outcome
    assert classify_error(OSError(text)) == outcome


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (torch.OutOfMemoryError("no words that tell"), "oom"),
        (MemoryError(), "host_oom"),
        (ValueError("CUDA out of memory"), "error"),
        (KeyError("loss"), "error"),
    ],
)
def test_out_of_memory_is_recognized_by_its_error_type(error, outcome):
    assert classify_error(error) == outcome


def test_an_error_is_classified_by_the_exception_that_caused_it():
    error = RuntimeError("DataLoader worker (pid(s) 4711) exited unexpectedly")
    assert classify_error(error) == "error"
    error.__cause__ = RuntimeError("DataLoader worker (pid 4711) is killed by signal: Killed. ")
    assert classify_error(error) == "host_oom"


@pytest.mark.parametrize(
    ("text", "gib"),
    [
        ("CUDA out of memory. Tried to allocate 194.00 MiB. GPU 0 has", 194 / 1024),
        ("Tried to allocate 1.50 GiB", 1.5),
        ("Tried to allocate 512 KiB", 2**-11),
        ("you tried to allocate 4294967296 bytes.", 4.0),
        ("Error out of memory at line 380", None),
    ],
)
def test_the_requested_allocation_is_read_from_the_message(text, gib):
    assert requested_gib(text) == gib


def test_an_error_is_shortened_to_its_first_line():
    assert first_line(ValueError("\n  first\nsecond")) == "first"
    assert first_line(ValueError()) == "ValueError"


def failure(phase="backward", step=1, requested=None):
    return Failure(phase=phase, step=step, requested_gib=requested, kind="RuntimeError", message="shapes differ")


@pytest.mark.parametrize(
    ("outcome", "failed", "memory", "reason"),
    [
        ("fits", None, Memory(peak_gib=12.345), "fits, 12.35 GiB at the peak"),
        ("fits", None, Memory(peak_gib=0.0102), "fits, 10.44 MiB at the peak"),
        (
            "oom",
            failure(requested=0.5),
            Memory(peak_gib=78.9),
            f"out of GPU memory in the backward pass of {STEP_1}, 0.5 GiB more requested (peak so far 78.9 GiB)",
        ),
        ("oom", failure("load"), Memory(), "out of GPU memory while loading"),
        (
            "host_oom",
            failure("optimizer step", 0),
            Memory(),
            f"out of host memory in the update of {STEP_0}",
        ),
        (
            "error",
            failure(),
            Memory(peak_gib=1.0),
            f"RuntimeError in the backward pass of {STEP_1}: shapes differ",
        ),
    ],
)
def test_the_reason_of_an_outcome_is_one_line(outcome, failed, memory, reason):
    assert describe_outcome(outcome, failed, memory) == reason


@pytest.mark.parametrize(
    ("reserved_gib", "requested", "is_full"),
    [(78.0, 0.7, False), (78.55, None, False), (78.0, 0.1, True), (40.0, 2.0, True), (None, None, True)],
)
def test_running_out_of_memory_below_the_limit_of_a_row_means_that_its_shared_gpu_was_full(
    reserved_gib, requested, is_full
):
    device = EMULATING_GPU.model_copy(update={"shared": True})
    memory, failed = Memory(peak_gib=30.0, reserved_gib=reserved_gib), failure(requested=requested)
    assert bool(describe_full_gpu(failed, memory, device)) == is_full
    alone = EMULATING_GPU, device.model_copy(update={"cap_gib": None})
    assert [describe_full_gpu(failed, memory, other) for other in alone] == ["", ""], "no limit, or no neighbors"


def test_rows_that_reached_their_limit_are_not_mistaken_for_rows_whose_shared_gpu_was_full():
    rows = [row for run in RUNS for row in RunFolder(run).results().values() if row.outcome == "oom" and not row.ranks]
    limited = [row for row in rows if row.device.cap_gib and row.failure]
    assert len(limited) >= 10
    for row in limited:
        assert describe_full_gpu(row.failure, row.memory, row.device.model_copy(update={"shared": True})) == ""


def test_the_reason_of_a_full_gpu_names_what_was_needed_and_what_to_do():
    device = EMULATING_GPU.model_copy(update={"shared": True})
    assert describe_full_gpu(failure(requested=2.0), Memory(reserved_gib=40.0), device) == (
        "the shared GPU was full when the row needed 42 GiB of its limit of 78.6 GiB;"
        " end other programs on the GPU, or run the row without --share-gpus (shapes differ)"
    )
