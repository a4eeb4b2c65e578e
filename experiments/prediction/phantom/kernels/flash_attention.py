"""Attention with the allocations of flash-attn 2.8, and without its compiled kernels.

Sources: flash_attn/flash_attn_interface.py and csrc/flash_attn/flash_api.cpp of Dao-AILab/flash-attention. Tensors have
the shape batch x length x heads x width. Texts of different lengths are concatenated: tokens x heads x width.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch.nn.functional import pad

from experiments.prediction.phantom.kernels.keys import operation_key
from experiments.prediction.phantom.library import Phantom

PARTS = {1: (3,), 2: (1, 2), 3: (1, 1, 1)}
"""Numbers of tensors among queries, keys and values in each argument, for calls with 1, 2 or 3 such arguments."""
WIDTH_MULTIPLE = 8
MAX_WIDTH = 256
ROWS_OF_BLOCK = 128
"""The kernels round the length of the queries up to this multiple."""
SPLIT_ROWS = 64
MAX_SPLITS = 128


class AttentionOptions(NamedTuple):
    """Arguments of an attention that decide its allocations.

    starts: of the texts among the tokens of queries and keys; None: texts of equal length. longest: the longest text of
    both.
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
        accumulators = _allocate_accumulators(q, k, options)
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
        gradients = _allocate_gradients(saved[:3], PARTS[ctx.packed_count])
        padded = _with_aligned_width(gradient)
        queries, rounded_width = _rounded_queries(q, options), _rounded_width(q)
        temporary = [q.new_empty(math.prod(queries), dtype=torch.float32)]
        splits = -(-_multiprocessors() // _batch_heads(q, options)) if options.deterministic else 1
        temporary.append(q.new_empty(splits * math.prod(queries) * rounded_width, dtype=torch.float32))
        if k.shape[-2] != q.shape[-2]:
            shape = (*k.shape[:-2], q.shape[-2], k.shape[-1])
            temporary += [k.new_empty(shape), k.new_empty(shape)]
        Attention.phantom.log_operation(_backward_key(padded, saved, options))
        return None, *(one[..., : gradient.shape[-1]] for one in gradients)


def attend(options: AttentionOptions, *packed: torch.Tensor) -> Any:
    """Return the attention of packed tensors: of queries, keys and values; or of queries, and both others packed.

    Raises RuntimeError as flash-attn does for tensors that it does not support.
    """
    return Attention.apply(options, *packed)  # type: ignore[no-untyped-call]


def _unpack(packed: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    counted = zip(packed, PARTS[len(packed)], strict=True)
    return [*itertools.chain.from_iterable([one] if count == 1 else one.unbind(-3) for one, count in counted)]


def _allocate_gradients(parts: tuple[torch.Tensor, ...], counts: tuple[int, ...]) -> list[torch.Tensor]:
    first_parts = [parts[sum(counts[:place])] for place in range(len(counts))]
    return [
        torch.empty_like(part) if count == 1 else part.new_empty((*part.shape[:-2], count, *part.shape[-2:]))
        for part, count in zip(first_parts, counts, strict=True)
    ]


def _with_aligned_width(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor with a width and a memory order that the kernels support; a copy, if its own are others."""
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


def _batch_heads(q: torch.Tensor, options: AttentionOptions) -> int:
    return (len(options.starts[0]) - 1 if options.starts else len(q)) * q.shape[-2]


def _shape_of_sums(q: torch.Tensor, options: AttentionOptions) -> tuple[int, ...]:
    return (q.shape[1], q.shape[0]) if options.starts else (q.shape[0], q.shape[2], q.shape[1])


def _shape_of_probabilities(q: torch.Tensor, k: torch.Tensor, options: AttentionOptions) -> tuple[int, ...]:
    if not options.returns_probabilities or not options.dropout:
        return (0,)
    lengths = options.longest if options.starts else (q.shape[1], k.shape[1])
    return (_batch_heads(q, options), *(_round_up(length, ROWS_OF_BLOCK) for length in lengths))


def _rounded_queries(q: torch.Tensor, options: AttentionOptions) -> tuple[int, int]:
    """Return the heads, and the queries of all texts with the rows that fill up the last block of each text."""
    if options.starts:
        return q.shape[1], len(q) + ROWS_OF_BLOCK * (len(options.starts[0]) - 1)
    return q.shape[2], len(q) * _round_up(q.shape[1], ROWS_OF_BLOCK)


def _rounded_width(q: torch.Tensor) -> int:
    return _round_up(q.shape[-1], 32 if q.shape[-1] <= 128 else 64)


def _allocate_accumulators(q: torch.Tensor, k: torch.Tensor, options: AttentionOptions) -> list[torch.Tensor]:
    """Return sums and outputs in 32 bit for each part of the keys, if a small attention is split into parts."""
    splits = 1 if options.starts or options.dropout else _split_count(q, k)
    if splits == 1:
        return []
    rows = splits * q.shape[0] * q.shape[1] * q.shape[2]
    return [q.new_empty(rows * width, dtype=torch.float32) for width in (1, _rounded_width(q))]


def _split_count(q: torch.Tensor, k: torch.Tensor) -> int:
    """Return the number of parts of the keys that uses the multiprocessors best (num_splits_heuristic)."""
    batch, length, heads, width = q.shape
    blocks, places = batch * heads * -(-length // SPLIT_ROWS), 2 * _multiprocessors()
    key_blocks = -(-k.shape[1] // (256 if width <= 64 else 128 if width <= 128 else 64))
    if blocks >= 0.8 * places:
        return 1
    sizes = {count: -(-key_blocks // count) for count in range(1, min(MAX_SPLITS, places, key_blocks) + 1)}
    waves = {count: blocks * count / places for count, size in sizes.items() if size != sizes.get(count - 1)}
    efficiencies = {count: wave / math.ceil(wave) for count, wave in waves.items()}
    return next((count for count, used in efficiencies.items() if used >= 0.85 * max(efficiencies.values())), 1)


def _multiprocessors() -> int:
    return int(torch.cuda.get_device_properties(0).multi_processor_count)


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
