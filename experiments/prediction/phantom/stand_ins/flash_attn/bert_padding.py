"""Removal and restoration of padding with the allocations of flash_attn.bert_padding."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import pad


class _IndexFirstAxis(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(indices)
        ctx.rows = len(values)
        flat = values.flatten(1)
        return flat.gather(0, indices[:, None].expand(-1, flat.shape[1])).reshape(-1, *values.shape[1:])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        (indices,) = ctx.saved_tensors
        flat = gradient.flatten(1)
        spread = flat.new_zeros(ctx.rows, flat.shape[1])
        spread.scatter_(0, indices[:, None].expand(-1, flat.shape[1]), flat)
        return spread.reshape(ctx.rows, *gradient.shape[1:]), None


class _IndexPutFirstAxis(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, indices: torch.Tensor, rows: int) -> torch.Tensor:
        ctx.save_for_backward(indices)
        spread = values.new_zeros(rows, *values.shape[1:])
        spread[indices] = values
        return spread

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        (indices,) = ctx.saved_tensors
        return gradient[indices], None, None


index_first_axis: Callable[..., Any] = _IndexFirstAxis.apply
index_put_first_axis: Callable[..., Any] = _IndexPutFirstAxis.apply


def unpad_input(
    hidden_states: torch.Tensor, attention_mask: torch.Tensor, unused_mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, torch.Tensor]:
    """Return the tokens of all texts, their positions, the starts of texts, the longest length, and the used lengths.

    hidden_states: batch x length x further dimensions. The masks have shape batch x length.
    """
    mask = attention_mask if unused_mask is None else attention_mask + unused_mask
    lengths = mask.sum(-1, dtype=torch.int32)
    used_lengths = attention_mask.sum(-1, dtype=torch.int32)
    indices = mask.flatten().nonzero().flatten()
    longest = int(lengths.max().item())
    starts = pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    return index_first_axis(hidden_states.flatten(0, 1), indices), indices, starts, longest, used_lengths


def pad_input(hidden_states: torch.Tensor, indices: torch.Tensor, batch: int, seqlen: int) -> torch.Tensor:
    """Return tokens at their positions in a padded batch: batch x length x further dimensions."""
    padded: torch.Tensor = index_put_first_axis(hidden_states, indices, batch * seqlen)
    return padded.unflatten(0, (batch, seqlen))
