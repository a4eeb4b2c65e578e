"""Meters of device memory: CUDA's own counters, and on a CPU the tensor storages that live."""

import weakref
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from experiments.results.schema import Phase

Kind = Literal["params", "grads", "optimizer", "batch"]


class Meter(Protocol):
    """Bytes on the device. peak and peak_reserved count from the last time that a phase began.

    watch tells it of tensors that were made out of its sight, and what they are.
    """

    def allocated(self) -> int: ...
    def peak(self) -> int: ...
    def peak_reserved(self) -> int | None: ...
    def begin(self, phase: Phase) -> None: ...
    def watch(self, kind: Kind, tensors: Iterable[torch.Tensor]) -> None: ...
    def __enter__(self) -> Any: ...
    def __exit__(self, *exc: Any) -> Any: ...


class CudaMeter:
    """The caching allocator's counters of a process's GPUs, added up over them.

    Peaks of several GPUs need not be of the same moment: their sum is what the process takes of all at most.
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

    def watch(self, kind: Kind, tensors: Iterable[torch.Tensor]) -> None:
        pass

    def __enter__(self) -> "CudaMeter":
        return self

    def __exit__(self, *exc: Any) -> None:
        pass


class StorageMeter(TorchDispatchMode):
    """Counts the storages of tensors from the operation that makes them until the last reference goes.

    A CPU has no counters of its own; this gives the miniature's memory by the same definition (scratch memory inside a
    kernel is not seen). ``capacity`` bytes, when given, is a pretend card: an operation that takes more raises
    torch.OutOfMemoryError.
    """

    def __init__(self, capacity: int | None = None) -> None:
        super().__init__()
        self.capacity = capacity
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

    def watch(self, kind: Kind, tensors: Iterable[torch.Tensor]) -> None:
        """Count tensors that were made outside this mode: parameters, a batch from the loader."""
        if kind in ("params", "batch"):
            for tensor in tensors:
                self._track(tensor)

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
        if self.capacity is not None and self._allocated + size > self.capacity:
            raise torch.OutOfMemoryError(
                f"pretend card out of memory. Tried to allocate {size / 2**20:.2f} MiB. "
                f"{self.capacity / 2**20:.2f} MiB in all, {self._allocated / 2**20:.2f} MiB allocated"
            )
        self._live[key] = size
        self._allocated += size
        self._peak = max(self._peak, self._allocated)
        weakref.finalize(storage, self._release, key).atexit = False

    def _release(self, key: int) -> None:
        self._allocated -= self._live.pop(key)


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages behind ``tensors``, a shared one counted once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def parameter_tensors(parameter: torch.nn.Parameter) -> list[torch.Tensor]:
    """What a device holds of a parameter: itself, and under DeepSpeed's stage 3 also this rank's share of it."""
    return [parameter, getattr(parameter, "ds_tensor", parameter)]


def optimizer_tensors(optimizer: Any) -> list[torch.Tensor]:
    """Every tensor that an optimizer keeps for its parameters.

    A ZeRO optimizer of DeepSpeed wraps the real one and holds 32-bit copies of its parameters, which count too; stage 3
    has another name for them.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    kept = [value for state in inner.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    if inner is not optimizer:
        for copies in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat"):
            kept += getattr(optimizer, copies, [])
    return kept
