"""Measure device memory: with CUDA's counters on GPUs, with the sizes of all tensor storages on a CPU."""

import weakref
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from experiments.results.schema import Phase

TensorKind = Literal["params", "grads", "optimizer", "batch"]


class Meter(Protocol):
    """Meter of memory in bytes.

    ``peak`` and ``peak_reserved`` return maxima since the start of the current phase. ``begin`` starts a new phase.
    ``track`` tells the meter the kind of tensors, and adds tensors whose creation the meter did not observe. Call
    ``end_micro_step`` at the end of each micro-step; the training may end after this call.
    """

    def allocated(self) -> int: ...
    def peak(self) -> int: ...
    def peak_reserved(self) -> int | None: ...
    def begin(self, phase: Phase) -> None: ...
    def track(self, kind: TensorKind, tensors: Iterable[torch.Tensor]) -> None: ...
    def end_micro_step(self) -> None: ...
    def __enter__(self) -> Any: ...
    def __exit__(self, *exc: Any) -> Any: ...


class CudaMeter:
    """Meter that adds up the counters of PyTorch's caching allocator over the GPUs of this process.

    The GPUs may reach their peaks at different times. Therefore, the sum of the peaks is an upper bound of the memory
    that the process uses at any time.
    """

    def __init__(self, gpus: Sequence[int]) -> None:
        self._gpus = gpus

    def allocated(self) -> int:
        return sum(map(torch.cuda.memory_allocated, self._gpus))

    def peak(self) -> int:
        return sum(map(torch.cuda.max_memory_allocated, self._gpus))

    def peak_reserved(self) -> int | None:
        return sum(map(torch.cuda.max_memory_reserved, self._gpus))

    def begin(self, phase: Phase) -> None:
        for gpu in self._gpus:
            torch.cuda.reset_peak_memory_stats(gpu)

    def track(self, kind: TensorKind, tensors: Iterable[torch.Tensor]) -> None:
        pass

    def end_micro_step(self) -> None:
        pass

    def __enter__(self) -> "CudaMeter":
        return self

    def __exit__(self, *exc: Any) -> None:
        pass


class StorageMeter(TorchDispatchMode):
    """Dispatch mode that counts each tensor storage from its creation until its last reference is gone.

    This meter measures the memory of tiny models on a CPU, for which PyTorch has no counters. Scratch memory inside
    kernels is not counted. capacity_bytes: memory of a simulated GPU; an operation that exceeds it raises
    torch.OutOfMemoryError. None: no limit.
    """

    def __init__(self, capacity_bytes: int | None = None) -> None:
        super().__init__()
        self.capacity_bytes = capacity_bytes
        self._live: dict[int, int] = {}
        self._allocated = self._peak = 0

    def allocated(self) -> int:
        return self._allocated

    def peak(self) -> int:
        return self._peak

    def peak_reserved(self) -> int | None:
        return None

    def begin(self, phase: Phase) -> None:
        self._peak = self._allocated

    def track(self, kind: TensorKind, tensors: Iterable[torch.Tensor]) -> None:
        """Count tensors that were created outside this mode: parameters, and batches from the loader."""
        if kind in ("params", "batch"):
            for tensor in tensors:
                self._track(tensor)

    def end_micro_step(self) -> None:
        pass

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in [out] if isinstance(out, torch.Tensor) else tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._track(leaf)
        return out

    def _track(self, tensor: torch.Tensor) -> None:
        if tensor.device.type == "meta":
            return
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._live:
            return
        if self.capacity_bytes is not None and self._allocated + size > self.capacity_bytes:
            raise torch.OutOfMemoryError(
                f"simulated GPU out of memory. Tried to allocate {size / 2**20:.2f} MiB. "
                f"{self.capacity_bytes / 2**20:.2f} MiB in total, {self._allocated / 2**20:.2f} MiB allocated"
            )
        self._live[key] = size
        self._allocated += size
        self._peak = max(self._peak, self._allocated)
        weakref.finalize(storage, self._release, key).atexit = False

    def _release(self, key: int) -> None:
        self._allocated -= self._live.pop(key)


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of the storages of ``tensors``; shared storages count once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def parameter_tensors(parameter: torch.nn.Parameter) -> list[torch.Tensor]:
    """Return the tensors that store a parameter.

    They are the parameter itself, with DeepSpeed's stage 3 also this rank's partition, and for 4-bit weights also the
    scales.
    """
    scales = getattr(parameter, "quant_state", None)
    states = [state for state in (scales, getattr(scales, "state2", None)) if state is not None]
    found = [tensor for state in states for tensor in (state.absmax, state.code, state.offset)]
    return [parameter, getattr(parameter, "ds_tensor", parameter), *(one for one in found if torch.is_tensor(one))]


def optimizer_tensors(optimizer: Any) -> list[torch.Tensor]:
    """Return all state tensors of an optimizer.

    DeepSpeed's ZeRO optimizer wraps the actual optimizer and has 32-bit copies of the parameters. These copies are
    included. The name of their attribute depends on the stage of ZeRO.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    tensors = [value for state in inner.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    if inner is not optimizer:
        for copies in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat"):
            tensors += getattr(optimizer, copies, [])
    return tensors


def resident_peak_gib() -> float:
    """Return the peak resident memory of this process, in GiB."""
    with open("/proc/self/status") as lines:
        kib = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return kib / 2**20
