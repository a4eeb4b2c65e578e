"""Attention with the allocations of flash-attn 2.8, and without its compiled kernels.

Sources: flash_attn/flash_attn_interface.py and csrc/flash_attn/flash_api.cpp of Dao-AILab/flash-attention. Tensors have
the shape batch x length x heads x width. Texts of different lengths are concatenated: tokens x heads x width.
"""

import itertools
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch.nn.functional import pad

from experiments.prediction.phantom.kernels.keys import operation_key
from experiments.prediction.phantom.library import FlashSizes, Phantom

PACKED_COUNTS = {1: (3,), 2: (1, 2), 3: (1, 1, 1)}
"""By number of tensors in a call: how many of queries, keys and values each tensor contains."""
WIDTH_MULTIPLE = 8
MAX_WIDTH = 256
ROWS_OF_BLOCK = 128
"""The probabilities have lengths that are rounded up to this multiple."""


class AttentionOptions(NamedTuple):
    """Arguments of an attention that decide its allocations.

    starts: positions at which texts begin, among the tokens of the queries and of the keys; None: all texts have equal
    length. longest: tokens of the longest text, among the queries and among the keys.
    """

    dropout: float
    causal: bool
    deterministic: bool
    returns_probabilities: bool
    starts: tuple[torch.Tensor, torch.Tensor] | None = None
    longest: tuple[int, int] = (0, 0)


class Attention(torch.autograd.Function):
    """Attention of queries, keys and values, of which several may be packed in one tensor (dimension -3)."""

    phantom: ClassVar[Phantom]

    @staticmethod
    def forward(ctx: Any, options: AttentionOptions, *packed: torch.Tensor) -> Any:
        """Return the output; on request, also the sums of exponentials and the probabilities."""
        width = packed[0].shape[-1]
        q, k, v = (_with_aligned_width(part) for part in _unpack(packed))
        _check(q, k, v, options)
        out = torch.empty_like(q)
        sums = q.new_empty(_shape_of_sums(q, options), dtype=torch.float32)
        probabilities = q.new_empty(_shape_of_probabilities(q, k, options))
        accumulators = _allocate(q, Attention.phantom.flash_scratch(_sizes(q, k, options), options.dropout))
        state = q.new_empty(2, dtype=torch.int64)
        Attention.phantom.log_operation(_forward_key(q, k, v, options))
        del accumulators
        ctx.options, ctx.packed_count = options, len(packed)
        ctx.save_for_backward(q, k, v, out, sums, state)
        result = out[..., :width]
        return (result, sums, probabilities) if options.returns_probabilities else result

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, *_: Any) -> Any:
        """Return the gradient of each packed tensor."""
        saved, options = ctx.saved_tensors, ctx.options
        q, k = saved[:2]
        gradients = _allocate_gradients(saved[:3], PACKED_COUNTS[ctx.packed_count])
        padded = _with_aligned_width(gradient)
        sizes = _sizes(q, k, options)
        scratch = Attention.phantom.flash_backward_scratch(sizes, deterministic=options.deterministic)
        temporary = _allocate(q, scratch)
        Attention.phantom.log_operation(_backward_key(padded, saved, options))
        del temporary
        return None, *(one[..., : gradient.shape[-1]] for one in gradients)


def attend(options: AttentionOptions, *packed: torch.Tensor) -> Any:
    """Return the attention of queries, keys and values.

    packed: a tensor of each; or the queries, and one tensor of keys and values; or one tensor of all three. Raises
    RuntimeError as flash-attn does for tensors that it does not support.
    """
    return Attention.apply(options, *packed)  # type: ignore[no-untyped-call]


def _unpack(packed: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    counted = zip(packed, PACKED_COUNTS[len(packed)], strict=True)
    return [*itertools.chain.from_iterable([one] if count == 1 else one.unbind(-3) for one, count in counted)]


def _allocate_gradients(parts: tuple[torch.Tensor, ...], counts: tuple[int, ...]) -> list[torch.Tensor]:
    first_parts = [parts[sum(counts[:place])] for place in range(len(counts))]
    return [
        torch.empty_like(part) if count == 1 else part.new_empty((*part.shape[:-2], count, *part.shape[-2:]))
        for part, count in zip(first_parts, counts, strict=True)
    ]


def _with_aligned_width(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor, or a copy if the kernels do not support its width or memory order."""
    if missing := -tensor.shape[-1] % WIDTH_MULTIPLE:
        tensor = pad(tensor, (0, missing))
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: AttentionOptions) -> None:
    problems = {
        "FlashAttention only supports Ampere GPUs or newer.": torch.cuda.get_device_capability() < (8, 0),
        "FlashAttention only support fp16 and bf16 data type": q.dtype not in (torch.float16, torch.bfloat16),
        "query and key must have the same dtype": k.dtype != q.dtype,
        "query and value must have the same dtype": v.dtype != q.dtype,
        f"FlashAttention forward only supports head dimension at most {MAX_WIDTH}": q.shape[-1] > MAX_WIDTH,
        "Number of heads in key/value must divide number of heads in query": q.shape[-2] % k.shape[-2] != 0,
        "cu_seqlens_q must have dtype int32": any(one.dtype != torch.int32 for one in options.starts or ()),
    }
    for message, is_wrong in problems.items():
        if is_wrong:
            raise RuntimeError(message)


def _sizes(q: torch.Tensor, k: torch.Tensor, options: AttentionOptions) -> FlashSizes:
    batch = len(options.starts[0]) - 1 if options.starts else len(q)
    lengths = (len(q), len(k)) if options.starts else (q.shape[1], k.shape[1])
    return FlashSizes(batch, q.shape[-2], k.shape[-2], *lengths, q.shape[-1], q.itemsize, bool(options.starts))


def _allocate(q: torch.Tensor, sizes: list[int]) -> list[torch.Tensor]:
    """Return a tensor of each size in bytes."""
    return [q.new_empty(size // q.itemsize) for size in sizes]


def _shape_of_sums(q: torch.Tensor, options: AttentionOptions) -> tuple[int, ...]:
    return (q.shape[1], q.shape[0]) if options.starts else (q.shape[0], q.shape[2], q.shape[1])


def _shape_of_probabilities(q: torch.Tensor, k: torch.Tensor, options: AttentionOptions) -> tuple[int, ...]:
    if not options.returns_probabilities or not options.dropout:
        return (0,)
    lengths = options.longest if options.starts else (q.shape[1], k.shape[1])
    sizes = _sizes(q, k, options)
    return (sizes.batch * sizes.heads, *(_round_up(length, ROWS_OF_BLOCK) for length in lengths))


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _forward_key(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: AttentionOptions) -> str:
    """Return the key of PyTorch's operation that runs the same kernel."""
    numbers = options.dropout, options.causal
    if options.starts:
        arguments = [q, k, v, *options.starts, *options.longest, *numbers, False]
        return operation_key("aten::_flash_attention_forward", arguments)
    tensors = [one.transpose(1, 2) for one in (q, k, v)]
    return operation_key("aten::_scaled_dot_product_flash_attention", [*tensors, *numbers, False])


def _backward_key(gradient: torch.Tensor, saved: Sequence[torch.Tensor], options: AttentionOptions) -> str:
    """Return the key of PyTorch's operation that runs the same kernels."""
    q, k, v, out, sums, state = saved
    numbers = options.dropout, options.causal
    if options.starts:
        arguments = [gradient, q, k, v, out, sums, *options.starts, *options.longest, *numbers, state, state]
        return operation_key("aten::_flash_attention_backward", arguments)
    tensors = [one.transpose(1, 2) for one in (gradient, q, k, v, out)]
    lengths = q.shape[1], k.shape[1]
    arguments = [*tensors, sums, None, None, *lengths, *numbers, state, state]
    return operation_key("aten::_scaled_dot_product_flash_attention_backward", arguments)
