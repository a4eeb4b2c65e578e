"""Compile and load the phantom CUDA device, before torch is first imported."""

import ctypes
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from experiments.errors import InputError
from experiments.results.provenance import versions
from experiments.suites.attention_kernels import KernelProperties

SOURCES = Path(__file__).parent
OLDEST_VERSIONS = {"torch": ("PyTorch", 2, 9), "transformers": ("Transformers", 5, 0)}
"""By package: its name in messages, and the oldest version (major, minor) that predictions were tested with."""
CALLBACK_TYPE = ctypes.CFUNCTYPE(None)
NO_CALLBACK = CALLBACK_TYPE()


@dataclass(frozen=True)
class Replay:
    """Result of a replay of the log with a given capacity. Sizes are in bytes; events are counted from 0.

    retries: number of times that the allocator freed its cache. peak_event: the event with the most memory allocated.
    failed_event: the allocation that did not fit, or None. requested: the size of this allocation.
    """

    peak_allocated: int
    peak_reserved: int
    retries: int
    peak_event: int
    failed_event: int | None
    requested: int


class LiveAllocation(NamedTuple):
    """A live allocation: the event that allocated it, its size in bytes, its category and its owner (0: none)."""

    allocated_at: int
    size: int
    category: int
    owner: int


class FlashSizes(NamedTuple):
    """Sizes of a flash attention. If texts are concatenated, ``length`` and ``key_length`` are those of all texts.

    width: elements of a head. element: bytes of an element. concatenated: whether texts of different lengths are
    concatenated.
    """

    batch: int
    heads: int
    key_heads: int
    length: int
    key_length: int
    width: int
    element: int
    concatenated: bool


class Phantom:
    """The loaded phantom device: its counters, its log, and replays of the log with other capacities."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._large_allocation_callback = NO_CALLBACK

    def install(self, kernels: KernelProperties) -> None:
        """Register the device with PyTorch at the first call. Use the kernels of a card from now on."""
        self._library.phantom_install(
            ctypes.c_int64(kernels.flash),
            ctypes.c_int64(kernels.memory_efficient),
            ctypes.c_int64(kernels.memory_efficient_bfloat16),
            ctypes.c_int64(kernels.cudnn_width),
            ctypes.c_int64(kernels.workspace_bytes),
            ctypes.c_int64(kernels.multiprocessors),
            ctypes.c_int64(kernels.attention_generation),
        )

    def replace_kernels(self, library: str) -> None:
        """Replace the CUDA kernels of a library other than PyTorch, such as torchvision, with the phantom device."""
        self._library.phantom_replace_kernels(library.encode())

    def stats(self) -> tuple[int, int, int, int, int]:
        """Return bytes allocated and reserved, both peaks since the last reset, and the number of events."""
        out = (ctypes.c_int64 * 5)()
        self._library.phantom_stats(out)
        allocated, reserved, peak_allocated, peak_reserved, events = out
        return allocated, reserved, peak_allocated, peak_reserved, events

    def reset_peaks(self) -> None:
        self._library.phantom_reset_peaks()

    def empty_cache(self) -> None:
        self._library.phantom_empty_cache()

    def tag(self, pointers: Sequence[int], category: int) -> None:
        """Set the category, such as parameters or gradients, of the storages at these data pointers; 0: no category."""
        for pointer in pointers:
            self._library.phantom_tag(ctypes.c_void_p(pointer), ctypes.c_int64(category))

    def set_owner(self, pointers: Sequence[int], owner: int) -> None:
        """Set the owner of the storages at these data pointers."""
        for pointer in pointers:
            self._library.phantom_set_owner(ctypes.c_void_p(pointer), ctypes.c_int64(owner))

    def tag_untagged(self, event: int, category: int) -> None:
        """Set the category of all untagged storages that exist right after an event."""
        self._library.phantom_tag_untagged(ctypes.c_int64(event), ctypes.c_int64(category))

    def replay(self, capacity: int) -> Replay:
        """Replay the log with an allocator of ``capacity`` bytes."""
        out = (ctypes.c_int64 * 6)()
        self._library.phantom_replay(ctypes.c_int64(capacity), out)
        allocated, reserved, retries, highest, failed, requested = out
        return Replay(allocated, reserved, retries, highest, failed if failed >= 0 else None, requested)

    def bytes_by_category(self, event: int, categories: int) -> list[int]:
        """Return the bytes that are allocated right after an event, by category."""
        out = (ctypes.c_int64 * categories)()
        self._library.phantom_bytes_by_category(ctypes.c_int64(event), ctypes.c_int64(categories), out)
        return list(out)

    def live_allocations(self, event: int) -> list[LiveAllocation]:
        """Return the allocations that are alive right after an event, in no particular order."""
        count = self._library.phantom_live_allocations(ctypes.c_int64(event), ctypes.c_int64(0), None)
        out = (ctypes.c_int64 * (4 * count))()
        self._library.phantom_live_allocations(ctypes.c_int64(event), ctypes.c_int64(count), out)
        return [LiveAllocation(*out[place : place + 4]) for place in range(0, 4 * count, 4)]

    def timeline(self, points: int) -> list[int]:
        """Return the maximum of allocated bytes in each of ``points`` equal parts of the log."""
        out = (ctypes.c_int64 * points)()
        self._library.phantom_timeline(ctypes.c_int64(points), out)
        return list(out)

    def resize(self, storage: int, size: int) -> None:
        """Set the size in bytes of the storage at this C++ address."""
        self._library.phantom_resize(ctypes.c_void_p(storage), ctypes.c_int64(size))

    def has_values(self, storage: int) -> bool:
        """Return whether the values of the storage at this C++ address are known. They are then in host memory."""
        return bool(self._library.phantom_has_values(ctypes.c_void_p(storage)))

    def on_large_allocation(self, callback: Callable[[], None] | None) -> None:
        """Call ``callback`` before each allocation of 1 MiB or more, in the allocating thread; None stops that."""
        self._large_allocation_callback = CALLBACK_TYPE(callback) if callback else NO_CALLBACK
        self._library.phantom_on_large_allocation(self._large_allocation_callback)

    def count_host_memory(self) -> None:
        """Count tensor bytes on the host from now on. Large tensors get addresses without memory (see host.h)."""
        self._library.phantom_count_host_memory()

    def host_peak(self) -> int:
        """Return the maximum of tensor bytes on the host since count_host_memory."""
        return int(self._library.phantom_host_peak())

    def log_operation(self, key: str) -> None:
        """Log an operation that is not one of PyTorch's."""
        self._library.phantom_log_operation(key.encode())

    def flash_scratch(self, sizes: FlashSizes, dropout: float) -> list[int]:
        """Return the sizes, in bytes, of the blocks that a forward pass of flash attention allocates and frees.

        The rules are in attention.h.
        """
        return self._flash_scratch(sizes, backward=False, dropout=dropout, deterministic=False)

    def flash_backward_scratch(self, sizes: FlashSizes, *, deterministic: bool) -> list[int]:
        """Return the sizes, in bytes, of the blocks that a backward pass of flash attention allocates and frees."""
        return self._flash_scratch(sizes, backward=True, dropout=0.0, deterministic=deterministic)

    def operation_count(self) -> int:
        """Return the number of operations that the device has executed."""
        return int(self._library.phantom_operation_count())

    def keys(self, begin: int, end: int) -> tuple[list[str], list[bool]]:
        """Return the keys of the executed operations, from number ``begin`` to before ``end``, in their order.

        Also returns whether each repeats a forward pass during a backward pass (activation checkpointing).
        """
        numbers, repeats = (ctypes.c_int64 * (end - begin))(), (ctypes.c_bool * (end - begin))()
        self._library.phantom_operations(ctypes.c_int64(begin), ctypes.c_int64(end), numbers, repeats)
        names = {number: self._operation_key(number) for number in set(numbers)}
        return [names[number] for number in numbers], list(repeats)

    def operations(self, begin: int, end: int, *, recomputed: bool = False) -> Counter[str]:
        """Return how many times each operation was executed, from number ``begin`` to before ``end``.

        recomputed: only the operations that repeat a forward pass during a backward pass (activation checkpointing).
        """
        keys, repeats = self.keys(begin, end)
        return Counter(itertools.compress(keys, repeats) if recomputed else keys)

    def record_use(self, storage: int, stream: int) -> None:
        """Record that operations on this stream use the storage at this C++ address."""
        self._library.phantom_record_use(ctypes.c_void_p(storage), ctypes.c_int64(stream))

    def last_operation_on(self, stream: int) -> int:
        """Return the number of the last operation that a stream executes or waits for, counted from 1; 0: none."""
        return int(self._library.phantom_last_operation_on(ctypes.c_int64(stream)))

    def waits(self) -> list[tuple[int, int]]:
        """Return the waits of the host for streams and events, in their order.

        For each: the number of operations started, and of those it waited for.
        """
        count = int(self._library.phantom_wait_count())
        out = (ctypes.c_int64 * (2 * count))()
        self._library.phantom_waits(ctypes.c_int64(count), out)
        return list(zip(out[::2], out[1::2], strict=True))

    def released_in_use(self) -> bool:
        """Return whether the program released a block that another stream may still have used."""
        return bool(self._library.phantom_released_in_use())

    def set_clocks(self, points: Sequence[tuple[int, float, float]]) -> None:
        """Use these clocks in replays from now on.

        Each point is a number of operations, and the times in seconds at which the host has started them and the GPU
        has executed them. In a replay, a released block that other streams use becomes free when the GPU has executed
        the operations that these streams had at the release. Without points, the block is free at its release.
        """
        self._library.phantom_clear_clocks()
        for operations, host_s, gpu_s in points:
            self._library.phantom_add_clock_point(
                ctypes.c_int64(operations), ctypes.c_double(host_s), ctypes.c_double(gpu_s)
            )

    def _flash_scratch(self, sizes: FlashSizes, *, backward: bool, dropout: float, deterministic: bool) -> list[int]:
        given, out = (ctypes.c_int64 * len(sizes))(*sizes), (ctypes.c_int64 * 4)()
        count = self._library.phantom_flash_scratch(
            given, ctypes.c_bool(backward), ctypes.c_double(dropout), ctypes.c_bool(deterministic), out
        )
        return out[:count]

    def _operation_key(self, number: int) -> str:
        return str(self._library.phantom_operation_key(ctypes.c_int64(number)).decode())

    def set_gpu(self, gpu: int) -> None:
        """Make this thread allocate on this GPU of the process from now on."""
        self._library.phantom_set_gpu(ctypes.c_int64(gpu))

    def ignore_gpu_numbers(self) -> None:
        """Count all GPU numbers as one GPU from now on: a rank has a single GPU, whose number depends on the rank."""
        self._library.phantom_ignore_gpu_numbers()

    def select_gpu(self, gpu: int) -> None:
        """Analyze only this GPU of the process from now on, in replays and in what is read from the log."""
        self._library.phantom_select_gpu(ctypes.c_int64(gpu))

    def set_pool(self, pool: int) -> None:
        """Allocate from this private pool from now on, in all threads; 0: from the pools of streams."""
        self._library.phantom_set_pool(ctypes.c_int64(pool))

    def end_pool(self, pool: int) -> None:
        """Let the allocator free what is cached in this private pool, because no graph uses the pool any longer."""
        self._library.phantom_end_pool(ctypes.c_int64(pool))

    def set_stream(self, stream: int) -> int:
        """Make this thread allocate for this stream from now on; return the previous stream."""
        return int(self._library.phantom_set_stream(ctypes.c_int64(stream)))


def load(cache: Path) -> Phantom:
    """Return the device, compiled at first use and cached under ``cache``.

    Call this function before torch is imported. Raises InputError if PyTorch or a C++ compiler is missing, or if
    PyTorch or Transformers is too old.
    """
    assert "torch" not in sys.modules, "the phantom device must exist before torch looks for one"
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        raise InputError("predictions need PyTorch, which is not installed; install it with: pip install .[train]")
    reject_old_packages(versions())
    torch = Path(found.origin).parent
    for name in ("libtorch_cpu.so", "libtorch_cuda.so"):
        if (torch / "lib" / name).exists():
            ctypes.CDLL(str(torch / "lib" / name), mode=ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(compiled_library(cache, torch)), mode=ctypes.RTLD_GLOBAL)
    library.phantom_tag.restype = ctypes.c_bool
    library.phantom_set_stream.restype = ctypes.c_int64
    library.phantom_has_values.restype = ctypes.c_bool
    library.phantom_released_in_use.restype = ctypes.c_bool
    library.phantom_last_operation_on.restype = ctypes.c_int64
    library.phantom_wait_count.restype = ctypes.c_int64
    library.phantom_host_peak.restype = ctypes.c_int64
    library.phantom_operation_count.restype = ctypes.c_int64
    library.phantom_operation_key.restype = ctypes.c_char_p
    library.phantom_live_allocations.restype = ctypes.c_int64
    return Phantom(library)


def reject_old_packages(installed: Mapping[str, str]) -> None:
    """Raise InputError if the version of a package is older than predictions need. installed: version by package."""
    for package, (name, *oldest) in OLDEST_VERSIONS.items():
        version = installed.get(package)
        if version and [int(number) for number in version.split(".")[:2]] < oldest:
            raise InputError(
                f"predictions need {name} {oldest[0]}.{oldest[1]} or newer, but {version} is installed; "
                "install the versions of containers/current.txt"
            )


def compiled_library(cache: Path, torch: Path) -> Path:
    """Return the path of the library for the installed torch. Compile it if it is missing; concurrent callers wait."""
    sources = sorted([*SOURCES.glob("*.h"), *SOURCES.glob("*.cpp")])
    version = importlib.metadata.version("torch")
    digest = hashlib.sha256(b"".join([version.encode(), *(path.read_bytes() for path in sources)])).hexdigest()[:12]
    library = cache / f"phantom-{digest}.so"
    if library.exists():
        return library
    compiler = shutil.which("c++")
    if compiler is None:
        raise InputError("prediction compiles a small library at first use and finds no C++ compiler (package g++)")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock_file = library.with_suffix(".lock").open("w")
    except OSError as error:
        raise InputError(
            f"{cache}: cannot be written ({error.strerror}), but predictions compile a small library there; set "
            "TESTBED_CACHE to another folder"
        ) from None
    with lock_file as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            partial = library.with_suffix(".part")
            _compile(compiler, torch, partial)
            os.replace(partial, library)
    return library


def _compile(compiler: str, torch: Path, out: Path) -> None:
    include = torch / "include"
    command = [compiler, "-O1", "-std=c++20", "-shared", "-fPIC", f"-I{include}"]
    command += [f"-I{include / 'torch' / 'csrc' / 'api' / 'include'}", str(SOURCES / "device.cpp"), "-o", str(out)]
    command += [f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        errors = " | ".join(lines[:3])
        raise InputError(f"predictions need a simulated GPU, which does not compile against this PyTorch: {errors}")
