"""Rotary position embedding with the allocations of flash_attn.layers.rotary, whose kernel is written in Triton."""

from typing import Any

import torch


class _ApplyRotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, inplace: bool) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.inplace = inplace
        if inplace:
            ctx.mark_dirty(x)
            return x
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return gradient if ctx.inplace else torch.empty_like(gradient), None, None, None


def apply_rotary_emb(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    interleaved: bool = False,
    inplace: bool = False,
    seqlen_offsets: int | torch.Tensor = 0,
    cu_seqlens: torch.Tensor | None = None,
    max_seqlen: int | None = None,
) -> torch.Tensor:
    """Return ``x`` with rotary position embedding: in a new tensor, or in ``x`` itself with ``inplace``."""
    rotated: torch.Tensor = _ApplyRotary.apply(x, cos, sin, inplace)  # type: ignore[no-untyped-call]
    return rotated


apply_rotary_emb_func = apply_rotary_emb
