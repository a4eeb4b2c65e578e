"""Keys of operations of other libraries than PyTorch, in the format of the keys that the phantom device logs."""

import json
from collections.abc import Sequence
from typing import Any

import torch

from experiments.prediction.times.replay import TYPES

TYPE_NAMES = {dtype: name for name, dtype in TYPES.items()}


def operation_key(name: str, arguments: Sequence[Any]) -> str:
    """Return the key of an operation: JSON text with its name and arguments. Tensors have a type, sizes and strides."""
    overload = "" if "." in name else ".default"
    return json.dumps([name + overload, *map(_as_loggable, arguments)])


def _as_loggable(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        strides = {} if value.is_contiguous() else {"strides": list(value.stride())}
        host = {"host": 1} if value.device.type == "cpu" else {}
        return {"type": TYPE_NAMES.get(value.dtype, str(value.dtype)), "sizes": list(value.shape), **strides, **host}
    if isinstance(value, torch.dtype):
        return {"dtype": TYPE_NAMES.get(value, str(value))}
    return [_as_loggable(one) for one in value] if isinstance(value, list | tuple) else value
