"""A model over several GPUs of one process, as transformers' device_map="auto" places it; for inference."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import get_balanced_memory
from torch import nn

from experiments.errors import InputError
from experiments.results.schema import Device
from experiments.suites.row_spec import RowSpec
from experiments.system.files import GIB
from experiments.training.models import DTYPES
from experiments.training.models.weights import fill_randomly, load_pretrained, meta_model

FOR_WEIGHTS = 0.9


def build_spread(spec: RowSpec, device: Device) -> Any:
    """The row's model, its layers shared out among the row's GPUs, each of which is held to the row's cap.

    A tenth of each GPU is left to what the model does. Raises torch.OutOfMemoryError when the rest has no room for the
    weights, and InputError for weights of 4 bits.
    """
    if spec.settings.quantization:
        raise InputError("quantization: a model over several GPUs is not quantized; allowed: on one device")
    dtype = DTYPES[spec.settings.precision]
    model: Any = meta_model(spec.base_model, spec.size)
    places = placed(model, dtype, {number: room(number, device) for number in range(spec.settings.devices)})
    if spec.weights == "pretrained":
        return load_pretrained(spec.base_model, spec.size, dtype, None, places)
    fill_randomly(model, dtype, places)
    return dispatch_model(model, places)


def room(number: int, device: Device) -> int:
    """Bytes of a GPU that weights may take: of its cap, or of what is free where there is none."""
    free = torch.cuda.mem_get_info(number)[0] if device.cap_gib is None else device.cap_gib * GIB
    return int(FOR_WEIGHTS * free)


def placed(model: nn.Module, dtype: torch.dtype, rooms: Mapping[int, int]) -> dict[str, Any]:
    """The GPU of each part of a model, evenly shared out; ``rooms`` has the bytes that weights may take of each.

    Raises torch.OutOfMemoryError when that is too little.
    """
    whole = model._no_split_modules
    shares = get_balanced_memory(model, dict(rooms), no_split_module_classes=whole, dtype=dtype)
    places: dict[str, Any] = infer_auto_device_map(model, shares, no_split_module_classes=whole, dtype=dtype)
    left = [name for name, place in places.items() if place not in rooms]
    if left:
        sizes = ", ".join(f"{size / GIB:.3g}" for size in rooms.values())
        raise torch.OutOfMemoryError(
            f"the weights do not fit {sizes} GiB of {len(rooms)} GPUs; left: {', '.join(left)}"
        )
    return places
