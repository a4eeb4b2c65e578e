"""Replace functions of torch.cuda with those of the phantom device, until the process ends."""

import json
import time
from types import SimpleNamespace
from typing import Any, Self

import torch
import torch.backends.cudnn.rnn
import torch.cuda.nccl
import torch.cuda.streams
import torch.distributions
import torch.fx.experimental._config
import torch.nn.parallel.comm

from experiments.prediction.phantom.cuda_memory import replace_memory_functions
from experiments.prediction.phantom.cuda_random import make_no_operation, replace_random_functions
from experiments.prediction.phantom.host_work import log_checkpoints
from experiments.prediction.phantom.kernels.cuda_graphs import replace_cuda_graphs
from experiments.prediction.phantom.library import Phantom
from experiments.prediction.phantom.meta_functions import register_meta_functions
from experiments.prediction.times.operations import WAIT
from experiments.suites.cards import Card
from experiments.system.files import GIB

NCCL_VERSION = (2, 28, 9)
"""Version of NCCL in the CUDA build of PyTorch 2.13."""
CUDNN_DATA_TYPES = (torch.float16, torch.float32, torch.float64)
CUDNN_MODES = ("RNN_RELU", "RNN_TANH", "LSTM", "GRU")
"""Kinds of recurrent layers in the order of cuDNN's numbers for them."""
CUDA_DEVICE_TYPE = 1
"""Number of CUDA in PyTorch's c10::DeviceType."""
STREAM_PRIORITIES = (0, -3)
"""Least and greatest priority of a stream: PyTorch has four (c10/cuda/CUDAStream.h)."""
RELEASE_WAIT_S = 0.01
"""Seconds in which the threads of autograd release the last tensors of a backward pass."""
_resize_on_host = torch.UntypedStorage.resize_
_detect_causal_mask_on_host = torch.nn.modules.transformer._detect_is_causal_mask


class Stream(torch.Stream):
    """A CUDA stream. Its id selects a memory pool of the allocator."""

    def __new__(cls, device: Any = None, priority: int = 0, **ids: int) -> Self:
        """Return a new stream; with its id, index and type of the device: the stream with this id."""
        return super().__new__(cls, **ids) if ids else super().__new__(cls, "cuda", priority=priority)

    @property
    def cuda_stream(self) -> int:
        return self.stream_id

    @staticmethod
    def priority_range() -> tuple[int, int]:
        return STREAM_PRIORITIES

    def wait_event(self, event: torch.Event) -> None:
        event.wait(self)

    def record_event(self, event: torch.Event | None = None) -> torch.Event:
        event = Event() if event is None else event
        event.record(self)
        return event


class Event(torch.Event):
    """A CUDA event. ``query`` always returns True, so it counts as a wait of the host for the event."""

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Return a new event, which has no options: there are no times and no other processes on the device."""
        return super().__new__(cls, "cuda")

    @property
    def cuda_event(self) -> int:
        return self.event_id

    def elapsed_time(self, _: torch.Event) -> float:
        return 1.0


class StreamContext:
    """Context manager (torch.cuda.stream). Allocations in its body are made for the stream."""

    def __init__(self, phantom: Phantom, stream: torch.Stream | None) -> None:
        self._phantom, self._stream = phantom, stream

    def __enter__(self) -> None:
        if self._stream is not None:
            self._previous_stream = self._phantom.set_stream(self._stream.stream_id)

    def __exit__(self, *_: Any) -> None:
        if self._stream is not None:
            self._phantom.set_stream(self._previous_stream)


class DeviceContext:
    """Context manager (torch.cuda.device) that changes nothing, because there is a single device."""

    def __init__(self, device: Any = None) -> None:
        self.idx = self.prev_idx = 0

    def __enter__(self) -> None: ...
    def __exit__(self, *_: Any) -> None: ...


def replace_cuda(phantom: Phantom, card: Card) -> None:
    """Make torch.cuda use the phantom device, with the name of ``card`` and unlimited capacity.

    With unlimited capacity, a training that does not fit the card also runs to its end, and its needed memory can be
    measured.
    """
    major, _, minor = card.compute_capability.partition(".")
    capability = (int(major), int(minor)) if major.isdigit() else (9, 0)
    properties = SimpleNamespace(
        name=card.name,
        major=capability[0],
        minor=capability[1],
        total_memory=round(card.memory_gib * GIB),
        multi_processor_count=card.multiprocessors,
        gcnArchName=card.compute_capability,
        warp_size=32,
    )
    replacements: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "init": make_no_operation(),
        "_lazy_init": make_no_operation(),
        "_is_in_bad_fork": lambda: False,
        "is_bf16_supported": lambda including_emulation=True: including_emulation or capability >= (8, 0),
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": make_no_operation(),
        "device": DeviceContext,
        "get_device_name": lambda device=None: card.name,
        "get_device_capability": lambda device=None: capability,
        "get_device_properties": lambda device=None: properties,
        "synchronize": lambda device=None: _synchronize(phantom),
        "empty_cache": phantom.empty_cache,
        "ipc_collect": make_no_operation(),
        "set_sync_debug_mode": make_no_operation(),
        "can_device_access_peer": lambda device, peer: False,
        "device_of": DeviceContext,
        "Stream": Stream,
        "Event": Event,
        "ExternalStream": lambda stream_ptr, device=None: _stream(int(stream_ptr)),
        "stream": lambda stream: StreamContext(phantom, stream),
        "current_stream": lambda device=None: _stream(_current_stream(phantom)),
        "default_stream": lambda device=None: _stream(0),
        "set_stream": lambda stream: phantom.set_stream(stream.stream_id) and None,
    }
    for name, replacement in replacements.items():
        setattr(torch.cuda, name, replacement)
    no_nvtx = SimpleNamespace(rangePushA=lambda _: 0, rangePop=lambda: 0, markA=lambda _: None)
    other_replacements: list[tuple[Any, str, Any]] = [
        (torch.accelerator, "synchronize", lambda device=None: _synchronize(phantom)),
        (torch.cuda.streams, "Stream", Stream),
        (torch.cuda.streams, "Event", Event),
        (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        (torch.cuda.nvtx, "_nvtx", no_nvtx),
        (torch.cuda.nccl, "version", lambda: NCCL_VERSION),
        (torch.backends.cudnn, "is_acceptable", lambda tensor: tensor.dtype in CUDNN_DATA_TYPES),
        (torch.backends.cudnn.rnn, "get_cudnn_mode", CUDNN_MODES.index),
        (torch.nn.parallel.comm, "scatter", _scatter_to_the_device),
        (torch.nn.modules.transformer, "_detect_is_causal_mask", _detect_causal_mask),
        (torch.Tensor, "record_stream", _make_record_stream(phantom)),
        (torch.UntypedStorage, "clone", _clone_storage),
        (torch.UntypedStorage, "resize_", _make_resize(phantom)),
    ]
    for owner, name, replacement in other_replacements:
        setattr(owner, name, replacement)
    replace_memory_functions(phantom, properties.total_memory)
    replace_random_functions()
    replace_cuda_graphs(phantom)
    log_checkpoints(phantom)
    register_meta_functions()
    _place_loaded_storages()
    torch.distributions.Distribution.set_default_validate_args(False)
    torch.fx.experimental._config.meta_nonzero_assume_all_nonzero = True


def _synchronize(phantom: Phantom) -> None:
    """Log a wait for the GPU. Give the threads of autograd time to release the last tensors of a backward pass."""
    phantom.log_operation(json.dumps([WAIT]))
    time.sleep(RELEASE_WAIT_S)


def _scatter_to_the_device(tensor: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor]:
    return (tensor.to("cuda"),)


def _detect_causal_mask(mask: torch.Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
    """Return whether torch.nn.Transformer treats a mask as causal.

    A mask on the device has no values, and counts as causal if it is square and has the requested size.
    """
    if is_causal is not None or mask is None or mask.device.type != "cuda":
        return _detect_causal_mask_on_host(mask, is_causal, size)
    return mask.shape[-1] == mask.shape[-2] == (size or mask.shape[-2])


def _place_loaded_storages() -> None:
    """Make torch.load place storages on the device.

    ``_load_storage`` is registered only once, because torch cannot sort two functions of equal priority.
    """
    registered = [deserialize for _, _, deserialize in torch.serialization._package_registry]
    if _load_storage not in registered:
        torch.serialization.register_package(0, lambda storage: None, _load_storage)


def _load_storage(storage: Any, location: str) -> torch.UntypedStorage | None:
    """Return a new storage on the phantom device if torch.load places a storage on a GPU; None for other places."""
    if not location.startswith("cuda"):
        return None
    return torch.empty(storage.nbytes(), dtype=torch.uint8, device="cuda").untyped_storage()


def _clone_storage(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    copied = torch.empty(storage.nbytes(), dtype=torch.uint8, device=storage.device)
    return copied.untyped_storage().copy_(storage) if storage.device.type == "cpu" else copied.untyped_storage()


def _make_resize(phantom: Phantom) -> Any:
    def resize(storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
        if storage.device.type != "cuda":
            return _resize_on_host(storage, size)
        phantom.resize(storage._cdata, size)
        return storage

    return resize


def _make_record_stream(phantom: Phantom) -> Any:
    def record_stream(tensor: torch.Tensor, stream: torch.Stream) -> None:
        phantom.record_use(tensor.untyped_storage()._cdata, stream.stream_id)

    return record_stream


def _stream(stream_id: int) -> Stream:
    return Stream(stream_id=stream_id, device_index=0, device_type=CUDA_DEVICE_TYPE)


def _current_stream(phantom: Phantom) -> int:
    stream = phantom.set_stream(0)
    phantom.set_stream(stream)
    return stream
