"""Offload activations: keep them in host memory between the forward and the backward pass."""

import functools
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks

SMALLEST_OFFLOADED_BYTES = 2**20
"""Smaller tensors stay on the GPU, because their transfer takes time and saves little memory."""


def offload_activations(model: nn.Module) -> None:
    """Make ``model`` keep the tensors that it saves for the backward pass in pinned host memory until this pass.

    Weights, tensors below 1 MiB and expanded views, which repeat a smaller tensor, stay on their device. The arithmetic
    is unchanged. Tensors that a loss outside of the model's forward pass saves are not offloaded.
    """
    forward = model.forward

    @functools.wraps(forward)
    def offloading_forward(*inputs: Any, **options: Any) -> Any:
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        with _offload_except(weights):
            return forward(*inputs, **options)

    setattr(model, "forward", offloading_forward)  # noqa: B010 - mypy rejects the assignment to a method


def _offload_except(excluded_addresses: set[int]) -> saved_tensors_hooks:
    """Return the context in which saved tensors are offloaded, except those in storages at ``excluded_addresses``."""
    offload = save_on_cpu(pin_memory=True)

    def pack(tensor: torch.Tensor) -> Any:
        size, storage = tensor.numel() * tensor.element_size(), tensor.untyped_storage()
        if size < SMALLEST_OFFLOADED_BYTES or storage.nbytes() < size or storage.data_ptr() in excluded_addresses:
            return tensor
        return offload.pack_hook(tensor)

    def unpack(packed: Any) -> torch.Tensor:
        return packed if isinstance(packed, torch.Tensor) else offload.unpack_hook(packed)

    return saved_tensors_hooks(pack, unpack)
