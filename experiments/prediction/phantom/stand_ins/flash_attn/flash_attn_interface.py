"""Attention functions of flash-attn 2.8 with the same arguments and allocations.

The scale, the window, soft capping and ALiBi slopes change no allocation, and are accepted. Shapes are those of
experiments.prediction.phantom.kernels.flash_attention.
"""

from typing import Any

import torch

from experiments.errors import InputError
from experiments.prediction.phantom.kernels.flash_attention import AttentionOptions, attend

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
    return attend(AttentionOptions(dropout_p, causal, deterministic, return_attn_probs), q, k, v)


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
    return attend(AttentionOptions(dropout_p, causal, deterministic, return_attn_probs), q, kv)


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
    return attend(AttentionOptions(dropout_p, causal, deterministic, return_attn_probs), qkv)


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
    if block_table is not None:
        raise InputError("flash-attn: block_table (a paged cache) is not modeled on the simulated GPU; omit it")
    texts = (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k)
    return attend(AttentionOptions(dropout_p, causal, deterministic, return_attn_probs, *texts), q, k, v)


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
    texts = (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k)
    return attend(AttentionOptions(dropout_p, causal, deterministic, return_attn_probs, *texts), q, kv)


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
    texts = (cu_seqlens, cu_seqlens), (max_seqlen, max_seqlen)
    return attend(AttentionOptions(dropout_p, causal, deterministic, return_attn_probs, *texts), qkv)


def flash_attn_with_kvcache(*_: Any, **__: Any) -> Any:
    """Raise InputError: attention with a KV cache, which only text generation uses, is not modeled."""
    raise InputError(
        "flash_attn_with_kvcache is not modeled on the simulated GPU; generate with attn_implementation='sdpa'"
    )


def __getattr__(name: str) -> Any:
    """Return a function that raises InputError, in place of a private function of flash-attn."""
    if not name.startswith("_flash_attn"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def not_modeled(*_: Any, **__: Any) -> Any:
        raise InputError(f"flash_attn_interface.{name} is not modeled on the simulated GPU; call flash_attn_func")

    return not_modeled
