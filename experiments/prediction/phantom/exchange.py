"""Values that ranks send each other, and the store that they share.

Ranks exchange the values of tensors in host memory, and of small tensors of integers on the GPU. Other tensors on the
GPU have no values. The ranks are traced one after the other, each in its own process. A rank writes the values that it
sends to files, which higher ranks read. A rank cannot know what a higher rank sends.
"""

import ctypes
import functools
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C import _distributed_c10d as c10d

from experiments.errors import InputError
from experiments.prediction.phantom.library import Phantom

REDUCTIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "SUM": torch.add,
    "PRODUCT": torch.mul,
    "MIN": torch.minimum,
    "MAX": torch.maximum,
    "BAND": torch.bitwise_and,
    "BOR": torch.bitwise_or,
    "BXOR": torch.bitwise_xor,
}
"""The function that combines two ranks' values, by reduction of gloo. In other reductions, a rank keeps its value."""
LARGE_HOST_BYTES = 16 * 2**20
"""Size from which tensors in host memory have no values, unless their elements are bytes (kLargeOnHost in host.h)."""
STORED_GPU_TYPES = {torch.bool, torch.int16, torch.int32, torch.int64}
"""Data types of the tensors on the GPU that have values (has_values in log.h)."""
LARGE_GPU_BYTES = 2**20
"""Size from which integers on the GPU are not exchanged: they are data, and not counts or shapes."""


class RankStore(c10d.Store):
    """A store that all ranks of a program share. Its values are files in ``folder``. Waiting for a key ends at once.

    The caller must keep a reference to the store, because PyTorch keeps none.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        super().__init__()
        self._folder, self._rank = folder, rank
        folder.mkdir(exist_ok=True)

    def _file(self, key: str) -> Path:
        return self._folder / hashlib.sha256(key.encode()).hexdigest()

    def set(self, key: str, value: bytes) -> None:  # type: ignore[override]
        self._file(key).write_bytes(value)

    def get(self, key: str) -> bytes:
        """Return the value of a key. Raises InputError if neither this rank nor a lower one has set it."""
        if not self.check([key]):
            raise InputError(
                f"rank {self._rank} reads {key!r} from a store, and no rank from 0 to {self._rank} has set it; "
                "a prediction traces the ranks one after the other"
            )
        return self._file(key).read_bytes()

    def add(self, key: str, amount: int) -> int:
        count = int(self._value_or_empty(key) or b"0") + amount
        self.set(key, str(count).encode())
        return count

    def append(self, key: str, value: bytes) -> None:
        self.set(key, self._value_or_empty(key) + value)

    def compare_set(self, key: str, expected: bytes, desired: bytes) -> bytes:  # type: ignore[override]
        if self._value_or_empty(key) != expected:
            return self._value_or_empty(key) or expected
        self.set(key, desired)
        return desired

    def _value_or_empty(self, key: str) -> bytes:
        """Return the value of a key; empty if no rank has set the key."""
        return self.get(key) if self.check([key]) else b""

    def check(self, keys: Sequence[str]) -> bool:
        return all(self._file(key).exists() for key in keys)

    def deleteKey(self, key: str) -> bool:  # noqa: N802 - the name that PyTorch calls
        exists = self.check([key])
        self._file(key).unlink(missing_ok=True)
        return exists

    def getNumKeys(self) -> int:  # noqa: N802 - the name that PyTorch calls
        return len(list(self._folder.iterdir()))

    def wait(self, *_: Any) -> None: ...


class ValueExchange:
    """Exchange of the known values that the ranks of a group send each other.

    store: a store that only this group uses. size: number of ranks of the group. The value that a higher rank sends is
    unknown. In place of it, a gather or a reduction uses this rank's own value, and ``exchange_all`` uses the value
    that this rank sends to that rank. Other operations receive zeros in host memory, and leave tensors on the GPU
    unchanged.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, phantom: Phantom) -> None:
        self._store, self._rank, self._size, self._phantom = store, rank, size, phantom
        self._collective_numbers = itertools.count()
        self._messages: Counter[str] = Counter()

    def broadcast(self, tensors: Sequence[torch.Tensor], root: int) -> None:
        key = next(self._collective_numbers)
        for place, tensor in enumerate(self._known_values(tensors)):
            if root == self._rank:
                self._write(f"{key}/{place}", tensor)
            else:
                self._receive(f"{key}/{place}", root, tensor, tensors[place])

    def gather(self, outputs: Sequence[torch.Tensor], value: torch.Tensor) -> None:
        """Fill ``outputs`` with the value of each rank. ``outputs`` is empty on ranks that receive nothing."""
        self._gather(next(self._collective_numbers), outputs, value)

    def _gather(self, key: int, outputs: Sequence[torch.Tensor], value: torch.Tensor) -> None:
        for own in self._known_values([value]):
            self._write(f"{key}/{self._rank}", own)
            for rank, output in enumerate(self._known_values(outputs)):
                known = rank < self._rank and self._read(f"{key}/{rank}", output)
                if not known:
                    _fill(output, _to_bytes(own))

    def reduce(self, value: torch.Tensor, operation: Any) -> None:
        """Replace ``value`` by the reduction of the values of all ranks. operation: a ReduceOp."""
        key, combine = next(self._collective_numbers), REDUCTIONS.get(operation.op.name)
        if combine is None:
            return
        for own in self._known_values([value]):
            values = [torch.empty_like(own) for _ in range(self._size)]
            self._gather(key, values, own)
            own.copy_(functools.reduce(combine, values))

    def exchange_all(self, outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> None:
        """Fill ``outputs`` with what each rank sends to this one. inputs: what this rank sends to each."""
        key = next(self._collective_numbers)
        known = self._known_values([*outputs, *inputs])
        for rank, (output, value) in enumerate(zip(known[: len(outputs)], known[len(outputs) :], strict=True)):
            self._write(f"{key}/{self._rank}-{rank}", value)
            if rank >= self._rank or not self._read(f"{key}/{rank}-{self._rank}", output):
                _fill(output, _to_bytes(value))

    def scatter(self, output: torch.Tensor, inputs: Sequence[torch.Tensor], root: int) -> None:
        """Fill ``output`` with what rank ``root`` sends to this rank.

        inputs: on rank ``root``, a tensor for each rank; empty on all other ranks.
        """
        key = next(self._collective_numbers)
        for rank, value in enumerate(self._known_values(inputs)):
            self._write(f"{key}/{rank}", value)
        for received in self._known_values([output]):
            self._receive(f"{key}/{self._rank}", root, received, output)

    def send(self, tensor: torch.Tensor, receiver: int, tag: int) -> None:
        key = self._next_message_key(self._rank, receiver, tag)
        for value in self._known_values([tensor]):
            self._write(key, value)

    def receive(self, tensor: torch.Tensor, sender: int, tag: int) -> None:
        key = self._next_message_key(sender, self._rank, tag)
        for received in self._known_values([tensor]):
            self._receive(key, sender, received, tensor)

    def _known_values(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return a view of each tensor's values in host memory; [] if the values of any tensor are unknown."""
        known = all(
            _can_be_exchanged(tensor)
            and (not tensor.is_cuda or self._phantom.has_values(tensor.untyped_storage()._cdata))
            for tensor in tensors
        )
        return [_in_host_memory(tensor) for tensor in tensors] if known else []

    def _next_message_key(self, sender: int, receiver: int, tag: int) -> str:
        """Return the key of the next message between two ranks."""
        between = f"{sender}-{receiver}-{tag}"
        self._messages[between] += 1
        return f"{between}/{self._messages[between]}"

    def _receive(self, key: str, sender: int, values: torch.Tensor, output: torch.Tensor) -> None:
        """Fill ``values``, the view of ``output`` in host memory, with what ``sender`` has sent under ``key``."""
        known = sender <= self._rank and self._read(key, values)
        if not known and not output.is_cuda:
            values.zero_()

    def _write(self, key: str, tensor: torch.Tensor) -> None:
        self._store.set(key, _to_bytes(tensor))  # type: ignore[arg-type]

    def _read(self, key: str, output: torch.Tensor) -> bool:
        """Fill ``output`` with the value of a key. Return whether the key has a value."""
        exists = self._store.check([key])
        if exists:
            _fill(output, self._store.get(key))
        return exists


def _can_be_exchanged(tensor: torch.Tensor) -> bool:
    """Return whether ranks exchange the values of such a tensor. Bytes in host memory (objects) always have values."""
    size = tensor.untyped_storage().nbytes()
    if tensor.is_cuda:
        return tensor.dtype in STORED_GPU_TYPES and size < LARGE_GPU_BYTES
    return tensor.dtype == torch.uint8 or size < LARGE_HOST_BYTES


def _in_host_memory(tensor: torch.Tensor) -> torch.Tensor:
    """Return a view of the values of ``tensor`` in host memory."""
    if not tensor.is_cuda:
        return tensor
    if not tensor.numel():
        return torch.empty_like(tensor, device="cpu")
    storage = tensor.untyped_storage()
    memory = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
    values = torch.frombuffer(memory, dtype=tensor.dtype)
    return values.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())


def _bytes_of(tensor: torch.Tensor) -> Any:
    return tensor.detach().reshape(-1).view(torch.uint8).numpy()


def _to_bytes(tensor: torch.Tensor) -> bytes:
    return bytes(_bytes_of(tensor).tobytes())


def _fill(output: torch.Tensor, content: bytes) -> None:
    """Write ``content`` to ``output``.

    The sizes differ if the sender knows fewer ranks than this rank. Then, only the bytes that fit are written.
    """
    target = memoryview(_bytes_of(output))
    size = min(len(target), len(content))
    target[:size] = content[:size]


def receive_unknown_objects_as_none() -> None:
    """Make PyTorch return None for an object from a higher rank. Such an object is unknown, and has the size 0."""
    read = dist.distributed_c10d._tensor_to_object

    def tensor_to_object(tensor: torch.Tensor, size: int, group: Any) -> Any:
        return read(tensor, size, group) if size else None  # type: ignore[no-untyped-call]

    setattr(dist.distributed_c10d, "_tensor_to_object", tensor_to_object)  # noqa: B010 - not in the stubs
