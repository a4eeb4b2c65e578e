"""Distribute a model for inference over several GPUs of one process, as transformers' device_map="auto" does."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import compute_module_sizes, get_balanced_memory
from torch import nn

from experiments.errors import InputError
from experiments.results.schema import Device
from experiments.suites.row_spec import RowSpec
from experiments.system.files import GIB
from experiments.training.models.build import DTYPES, build_model
from experiments.training.models.weights import fill_randomly, find_device, load_pretrained, meta_model

WEIGHT_SHARE = 0.9
"""Share of a GPU's memory that weights may take; the rest is for activations."""
SPARE_PARTS = 1.25
"""Memory that spread_evenly adds to the equal share of each GPU, as a multiple of the size of the largest part."""


def build_across_gpus(spec: RowSpec, device: Device) -> Any:
    """Return the row's model with its layers distributed over the row's GPUs, within the memory cap of each.

    A tenth of each GPU is reserved for activations. On a machine without a GPU, all layers are on the CPU, and
    ``hf_device_map`` states on which GPUs the layers would be. Raises torch.OutOfMemoryError if the weights do not fit
    into the remaining memory of the GPUs, and InputError for 4-bit weights.
    """
    if spec.settings.quantization:
        raise InputError("quantization: not supported for a model on several GPUs; allowed: with devices = 1")
    dtype = DTYPES[spec.settings.precision]
    model: Any = meta_model(spec.base_model, spec.size)
    if device.kind == "cpu":
        placed: Any = build_model(spec, torch.device("cpu"))
        placed.hf_device_map = spread_evenly(model, dtype, spec.settings.devices)
        return placed
    budgets = {gpu: weight_budget_bytes(gpu, device) for gpu in range(spec.settings.devices)}
    device_map = balanced_device_map(model, dtype, budgets)
    if spec.weights == "pretrained":
        return load_pretrained(spec.base_model, spec.size, dtype, None, device_map)
    fill_randomly(model, dtype, device_map)
    return dispatch_model(model, device_map, skip_keys=model._skip_keys_device_placement)


def weight_bytes_by_gpu(model: Any, gpus: int) -> tuple[int, ...]:
    """Return the bytes of the weights on each GPU of a model from ``build_across_gpus``; shared weights count once."""
    sizes = [0] * gpus
    for name, weights in model.named_parameters():
        sizes[find_device(name, model.hf_device_map)] += weights.nbytes
    return tuple(sizes)


def spread_evenly(model: nn.Module, dtype: torch.dtype, gpus: int) -> dict[str, Any]:
    """Return a balanced assignment of a model's parts to imaginary GPUs that are large enough: the GPU by part name.

    Accelerate does not balance on a machine without GPUs. Therefore, each GPU except the last gets a memory limit: an
    equal share plus some memory, because accelerate keeps the memory for one part free on the first GPU.
    """
    if gpus == 1:
        return {"": 0}
    unsplit_classes: Any = model._no_split_modules or ()
    sizes = compute_module_sizes(model, dtype=dtype)
    parts = [sizes[path] for path, part in model.named_modules() if type(part).__name__ in unsplit_classes]
    limit = sizes[""] // gpus + int(SPARE_PARTS * max(parts, default=0))
    return balanced_device_map(model, dtype, {**dict.fromkeys(range(gpus), limit), gpus - 1: 2 * sizes[""]})


def weight_budget_bytes(gpu: int, device: Device) -> int:
    """Return the bytes of a GPU that weights may take: WEIGHT_SHARE of its memory cap, or else of its free memory."""
    free = torch.cuda.mem_get_info(gpu)[0] if device.cap_gib is None else device.cap_gib * GIB
    return int(WEIGHT_SHARE * free)


def balanced_device_map(model: nn.Module, dtype: torch.dtype, budgets: Mapping[int, int]) -> dict[str, Any]:
    """Return a balanced assignment of a model's parts to GPUs: the GPU by name of the part.

    budgets: bytes that weights may take on each GPU. Raises torch.OutOfMemoryError if the weights do not fit.
    """
    unsplit_classes = model._no_split_modules
    shares = get_balanced_memory(model, dict(budgets), no_split_module_classes=unsplit_classes, dtype=dtype)
    device_map: dict[str, Any] = infer_auto_device_map(
        model, shares, no_split_module_classes=unsplit_classes, dtype=dtype
    )
    unplaced = [part for part, gpu in device_map.items() if gpu not in budgets]
    if unplaced:
        sizes = ", ".join(f"{size / GIB:.3g}" for size in budgets.values())
        raise torch.OutOfMemoryError(
            f"the weights do not fit into {sizes} GiB on {len(budgets)} GPUs; not placed: {', '.join(unplaced)}"
        )
    return device_map
