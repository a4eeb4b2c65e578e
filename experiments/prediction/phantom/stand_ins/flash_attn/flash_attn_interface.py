"""Attention functions of flash-attn 2.8 with the same arguments and allocations.

The scale, the window, soft capping and ALiBi slopes change no allocation, and are accepted. Shapes are those of
experiments.prediction.phantom.kernels.flash_attention.
"""

from typing import Any

import torch

from experiments.errors import InputError
from experiments.prediction.phantom.kernels.flash_attention import attend

Window = tuple[int, int]


def flash_attn_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """Return the attention of texts of equal length."""
    return attend(
        q,
        k,
        v,
        dropout_p=dropout_p,
        causal=causal,
        deterministic=deterministic,
        returns_probabilities=return_attn_probs,
    )


def flash_attn_kvpacked_func(
    q: torch.Tensor,
    kv: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """Return the attention of texts of equal length; keys and values are in one tensor."""
    return attend(
        q, kv, dropout_p=dropout_p, causal=causal, deterministic=deterministic, returns_probabilities=return_attn_probs
    )


def flash_attn_qkvpacked_func(
    qkv: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """Return the attention of texts of equal length; queries, keys and values are in one tensor."""
    return attend(
        qkv, dropout_p=dropout_p, causal=causal, deterministic=deterministic, returns_probabilities=return_attn_probs
    )


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: torch.Tensor | None = None,
) -> Any:
    """Return the attention of concatenated texts."""
    return attend(
        q,
        k,
        v,
        dropout_p=dropout_p,
        causal=causal,
        deterministic=deterministic,
        returns_probabilities=return_attn_probs,
        starts=(cu_seqlens_q, cu_seqlens_k),
        longest=(int(max_seqlen_q), int(max_seqlen_k)),
        block_table=block_table,
    )


def flash_attn_varlen_kvpacked_func(
    q: torch.Tensor,
    kv: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """Return the attention of concatenated texts; keys and values are in one tensor."""
    return attend(
        q,
        kv,
        dropout_p=dropout_p,
        causal=causal,
        deterministic=deterministic,
        returns_probabilities=return_attn_probs,
        starts=(cu_seqlens_q, cu_seqlens_k),
        longest=(int(max_seqlen_q), int(max_seqlen_k)),
    )


def flash_attn_varlen_qkvpacked_func(
    qkv: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """Return the attention of concatenated texts; queries, keys and values are in one tensor."""
    return attend(
        qkv,
        dropout_p=dropout_p,
        causal=causal,
        deterministic=deterministic,
        returns_probabilities=return_attn_probs,
        starts=(cu_seqlens, cu_seqlens),
        longest=(int(max_seqlen), int(max_seqlen)),
    )


def flash_attn_with_kvcache(*_: Any, **__: Any) -> Any:
    """Raise InputError: the attention of a cache, which only serves generation, is not modeled."""
    raise InputError(
        "flash_attn_with_kvcache is not modeled on the simulated GPU; generate with attn_implementation='sdpa'"
    )
