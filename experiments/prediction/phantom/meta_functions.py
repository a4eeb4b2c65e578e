"""Meta functions (they compute the shapes of results) that PyTorch lacks, or whose memory order differs from a GPU's.

The number of distinct elements of a tensor without values is unknown. The functions for torch.unique assume that all
elements are distinct.
"""

from typing import Any

import torch
from torch._meta_registrations import meta__efficient_attention_backward, meta_conv
from torch._prims_common import suggest_memory_format

CHANNELS_LAST = {torch.channels_last, torch.channels_last_3d}
_library: list[torch.library.Library] = []


def register_meta_functions() -> None:
    """Register the functions, once and until the process ends."""
    if _library:
        return
    library = torch.library.Library("aten", "IMPL", "Meta")
    for name, function in (
        ("_thnn_fused_gru_cell", _gru_cell),
        ("_thnn_fused_gru_cell_backward", _gru_cell_backward),
        ("_unique2", _unique),
        ("unique_dim", _unique_dim),
        ("unique_consecutive", _unique_consecutive),
        ("convolution", _convolution),
        ("_efficient_attention_backward", _efficient_attention_backward),
    ):
        library.impl(name, function, allow_override=True)  # the default since PyTorch 2.13
    _library.append(library)


def _convolution(input: torch.Tensor, weight: torch.Tensor, *other_arguments: Any) -> torch.Tensor:
    """Return the output in the memory format of cuDNN: channels last if the input or the weight has it (ConvUtils.h).

    PyTorch's own function for meta tensors returns a contiguous output.
    """
    output = meta_conv(input, weight, *other_arguments)
    orders = {suggest_memory_format(one) for one in (input, weight)} & CHANNELS_LAST
    return output.to(memory_format=orders.pop()) if orders and input.dtype != torch.float64 else output


def _efficient_attention_backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    *arguments: Any,
    **options: Any,
) -> tuple[torch.Tensor | None, ...]:
    """Return the gradients. That of the bias exists only if it is requested (attention_backward.cu).

    PyTorch's own function for meta tensors always returns one, and does not allow ``scale`` and ``window_size``, on
    which no size depends.
    """
    allowed = {name: value for name, value in options.items() if name not in ("scale", "window_size")}
    results = meta__efficient_attention_backward(gradient, query, key, value, bias, *arguments, **allowed)
    bias_requires_grad = arguments[10]
    return results if bias_requires_grad else (*results[:3], None)


def _gru_cell(
    input_gates: torch.Tensor,
    hidden_gates: torch.Tensor,
    hidden: torch.Tensor,
    *_: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the new state and the workspace that the backward pass reads (ATen/native/cuda/RNN.cu)."""
    batch, size = hidden.shape
    return torch.empty_like(hidden), hidden.new_empty(batch, 5 * size)


def _gru_cell_backward(
    gradient: torch.Tensor, workspace: torch.Tensor, has_bias: bool
) -> tuple[torch.Tensor | None, ...]:
    """Return the gradients of the input's gates, the state's gates, the state, and the two biases."""
    batch, size = gradient.shape
    gates = [workspace.new_empty(batch, 3 * size) for _ in range(2)]
    biases = [workspace.new_empty(3 * size) if has_bias else None for _ in range(2)]
    return (*gates, torch.empty_like(gradient), *biases)


def _unique(
    values: torch.Tensor,
    sorted: bool = True,
    return_inverse: bool = False,
    return_counts: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _unique_results(values.new_empty(values.numel()), values.shape, return_inverse, return_counts)


def _unique_dim(
    values: torch.Tensor,
    dim: int,
    sorted: bool = True,
    return_inverse: bool = False,
    return_counts: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _unique_results(torch.empty_like(values), torch.Size([values.shape[dim]]), return_inverse, return_counts)


def _unique_consecutive(
    values: torch.Tensor, return_inverse: bool = False, return_counts: bool = False, dim: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if dim is None:
        return _unique(values, return_inverse=return_inverse, return_counts=return_counts)
    return _unique_dim(values, dim, return_inverse=return_inverse, return_counts=return_counts)


def _unique_results(
    values: torch.Tensor, inverse_shape: torch.Size, return_inverse: bool, return_counts: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the distinct values, inverse indices and counts. Tensors that are not requested are empty."""
    inverse = values.new_empty(inverse_shape if return_inverse else 0, dtype=torch.int64)
    counts = values.new_empty(inverse_shape.numel() if return_counts else 0, dtype=torch.int64)
    return values, inverse, counts
