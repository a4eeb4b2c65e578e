"""Values in host memory that ranks send each other, and the store that they share.

Ranks are traced one after the other, in processes of their own. What a rank writes stays in a folder, where higher
ranks read it. A lower rank cannot know what a higher one sends.
"""

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

REDUCTIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "SUM": torch.add,
    "PRODUCT": torch.mul,
    "MIN": torch.minimum,
    "MAX": torch.maximum,
    "BAND": torch.bitwise_and,
    "BOR": torch.bitwise_or,
    "BXOR": torch.bitwise_xor,
}
"""The function of two ranks' values for each reduction of gloo. In all other reductions, a rank keeps its own value."""
LARGE_BYTES = 16 * 2**20
"""Size from which tensors of numbers in host memory have no values (kLargeOnHost in host.h)."""


class RankStore(c10d.Store):
    """A store of the ranks of a launch, whose values are files in ``folder``. Waiting for a key ends at once.

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
        """Return the value of a key, which is empty if no rank has set it."""
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


class HostExchange:
    """The values in host memory that the ranks of a group send each other.

    store: a store of this group of ``size`` ranks. A value that a higher rank sends is unknown: a gather or a reduction
    takes this rank's own value instead, an exchange between all ranks takes what this rank sends there, and other
    operations receive zeros.
    """

    def __init__(self, store: dist.Store, rank: int, size: int) -> None:
        self._store, self._rank, self._size = store, rank, size
        self._collective_numbers = itertools.count()
        self._messages: Counter[str] = Counter()

    def broadcast(self, tensors: Sequence[torch.Tensor], root: int) -> None:
        if not _have_values(tensors):
            return
        key = next(self._collective_numbers)
        for place, tensor in enumerate(tensors):
            if root == self._rank:
                self._write(f"{key}/{place}", tensor)
            else:
                self._receive(f"{key}/{place}", root, tensor)

    def gather(self, outputs: Sequence[torch.Tensor], value: torch.Tensor) -> None:
        """Fill ``outputs`` with the value of each rank. ``outputs`` is empty on ranks that receive nothing."""
        if not _have_values([value]):
            return
        key = next(self._collective_numbers)
        self._write(f"{key}/{self._rank}", value)
        for rank, output in enumerate(outputs):
            known = rank < self._rank and self._read(f"{key}/{rank}", output)
            if not known:
                _fill(output, _to_bytes(value))

    def reduce(self, value: torch.Tensor, operation: Any) -> None:
        """Replace ``value`` by the reduction of the values of all ranks. operation: a ReduceOp."""
        combine = REDUCTIONS.get(operation.op.name)
        if combine and _have_values([value]):
            values = [torch.empty_like(value) for _ in range(self._size)]
            self.gather(values, value)
            value.copy_(functools.reduce(combine, values))

    def exchange_all(self, outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> None:
        """Fill ``outputs`` with what each rank sends to this one. inputs: what this rank sends to each."""
        if not _have_values([*outputs, *inputs]):
            return
        key = next(self._collective_numbers)
        for rank, (output, value) in enumerate(zip(outputs, inputs, strict=True)):
            self._write(f"{key}/{self._rank}-{rank}", value)
            if rank >= self._rank or not self._read(f"{key}/{rank}-{self._rank}", output):
                _fill(output, _to_bytes(value))

    def scatter(self, output: torch.Tensor, inputs: Sequence[torch.Tensor], root: int) -> None:
        """Fill ``output`` with what rank ``root`` sends to this rank.

        inputs: on rank ``root``, a tensor for each rank; empty on all other ranks.
        """
        if not _have_values([output]):
            return
        key = next(self._collective_numbers)
        for rank, value in enumerate(inputs):
            self._write(f"{key}/{rank}", value)
        self._receive(f"{key}/{self._rank}", root, output)

    def send(self, tensor: torch.Tensor, receiver: int, tag: int) -> None:
        if _have_values([tensor]):
            self._write(self._message(self._rank, receiver, tag), tensor)

    def receive(self, tensor: torch.Tensor, sender: int, tag: int) -> None:
        if _have_values([tensor]):
            self._receive(self._message(sender, self._rank, tag), sender, tensor)

    def _message(self, sender: int, receiver: int, tag: int) -> str:
        """Return the key of the next message between two ranks."""
        between = f"{sender}-{receiver}-{tag}"
        self._messages[between] += 1
        return f"{between}/{self._messages[between]}"

    def _receive(self, key: str, sender: int, output: torch.Tensor) -> None:
        if sender > self._rank or not self._read(key, output):
            output.zero_()

    def _write(self, key: str, tensor: torch.Tensor) -> None:
        self._store.set(key, _to_bytes(tensor))  # type: ignore[arg-type]

    def _read(self, key: str, output: torch.Tensor) -> bool:
        """Fill ``output`` with the value of a key; return whether there is one."""
        exists = self._store.check([key])
        if exists:
            _fill(output, self._store.get(key))
        return exists


def _have_values(tensors: Sequence[torch.Tensor]) -> bool:
    """Return whether tensors are in host memory and have values. Tensors of bytes (objects) always have values."""
    return all(
        tensor.device.type == "cpu" and (tensor.dtype == torch.uint8 or tensor.untyped_storage().nbytes() < LARGE_BYTES)
        for tensor in tensors
    )


def _bytes_of(tensor: torch.Tensor) -> Any:
    return tensor.detach().reshape(-1).view(torch.uint8).numpy()


def _to_bytes(tensor: torch.Tensor) -> bytes:
    return bytes(_bytes_of(tensor).tobytes())


def _fill(output: torch.Tensor, content: bytes) -> None:
    """Write bytes to a tensor.

    Their number may differ from the tensor's, if the sender knows fewer ranks than this rank.
    """
    target = memoryview(_bytes_of(output))
    size = min(len(target), len(content))
    target[:size] = content[:size]


def receive_unknown_objects_as_none() -> None:
    """Make PyTorch return None for an object from a higher rank. It is unknown, and its size is received as 0."""
    read = dist.distributed_c10d._tensor_to_object

    def tensor_to_object(tensor: torch.Tensor, size: int, group: Any) -> Any:
        return read(tensor, size, group) if size else None  # type: ignore[no-untyped-call]

    setattr(dist.distributed_c10d, "_tensor_to_object", tensor_to_object)  # noqa: B010 - not in the stubs
