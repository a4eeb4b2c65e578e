"""Run LitGPT's models on concatenated texts without padding; each text attends only to itself.

All layers but attention work on one token at a time, so they need no padding. PyTorch has flash attention for texts of
different lengths, but only for some GPUs, data types and models. Otherwise attention gets the texts as a padded batch.
A later token does not influence an earlier one, so the padding after a text has no effect on the text.
"""

import math
from types import MethodType
from typing import Any, NamedTuple

import torch
from litgpt import lora
from litgpt.model import GPT

FLASH_TYPES = (torch.float16, torch.bfloat16)
MAX_FLASH_HEAD_SIZE = 256
FLASH_HEAD_SIZE_MULTIPLE = 8


class PackedTexts(NamedTuple):
    """Where the tokens of concatenated texts are in a padded batch.

    places: (tokens,) int64, index of each token in the flattened padded batch. mask: (texts, longest text), of which
    only the shape is used. starts: (texts + 1,) int32, index of each text's first token, and at the end the number of
    all tokens; None if the GPU has no flash attention for texts of different lengths.
    """

    places: torch.Tensor
    mask: torch.Tensor
    starts: torch.Tensor | None


class _Pad(torch.autograd.Function):
    """Copy tokens (tokens, ...) to their places in a padded batch (texts x longest, ...) of zeros."""

    @staticmethod
    def forward(ctx: Any, tokens: torch.Tensor, places: torch.Tensor, count: int) -> torch.Tensor:
        ctx.save_for_backward(places)
        return tokens.new_zeros(count, *tokens.shape[1:]).index_copy(0, places, tokens)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (places,) = ctx.saved_tensors
        return gradients[0].index_select(0, places), None, None


class _Unpad(torch.autograd.Function):
    """Copy the tokens out of a padded batch. The backward pass copies gradients; index_select would add them up."""

    @staticmethod
    def forward(ctx: Any, padded: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(places)
        ctx.count = padded.shape[0]
        return padded.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (places,) = ctx.saved_tensors
        (gradient,) = gradients
        return gradient.new_zeros(ctx.count, *gradient.shape[1:]).index_copy(0, places, gradient), None


_pad: Any = _Pad.apply
_unpad: Any = _Unpad.apply


class PackedModel(GPT):  # type: ignore[misc]
    """GPT whose input is one row of concatenated texts. Call ``set_texts`` before each forward pass."""

    cos: torch.Tensor
    sin: torch.Tensor
    _max_seq_length: int

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for block in self.transformer.h:
            block.attn.scaled_dot_product_attention = MethodType(_attention_within_texts, block.attn)

    def set_texts(self, batch: dict[str, Any]) -> None:
        """Set the texts of the next forward pass. batch: a batch that ``pack_texts`` returned."""
        starts = batch["starts"]
        texts = PackedTexts(batch["places"], batch["attention_mask"], starts if _has_flash(starts.device) else None)
        self._places_in_text = texts.places % texts.mask.shape[1]
        for block in self.transformer.h:
            block.attn.texts = texts

    def forward(self, idx: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor | list[torch.Tensor]:
        """Return the logits of the token ids ``idx`` (1, tokens), as GPT does. Positions start from 0 in each text."""
        saved = self.cos, self.sin, self._max_seq_length
        self.cos, self.sin = (cache[self._places_in_text] for cache in (self.cos, self.sin))
        self._max_seq_length = idx.shape[1]
        try:
            return super().forward(idx, *rest, **options)
        finally:
            self.cos, self.sin, self._max_seq_length = saved


class PackedGPT(PackedModel):
    """LitGPT's model for concatenated texts."""


class PackedLoraGPT(PackedModel, lora.GPT):  # type: ignore[misc]
    """LitGPT's model with adapters for concatenated texts."""


def _attention_within_texts(
    self: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the attention of concatenated texts, each of which attends only to itself: (1, tokens, heads, size).

    q, k, v: (1, heads, tokens, size).
    """
    attention = _flash_attention if _suits_flash(self, q, mask) else _padded_attention
    return attention(self, q[0].transpose(0, 1), k[0].transpose(0, 1), v[0].transpose(0, 1), mask)[None]


def _padded_attention(
    block: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Return LitGPT's attention, computed for a padded batch. It and ``q``, ``k``, ``v`` are (tokens, heads, size)."""
    places, (texts, longest) = block.texts.places, block.texts.mask.shape
    rows = (_pad(one, places, texts * longest) for one in (q, k, v))
    padded = (row.view(texts, longest, *row.shape[1:]).transpose(1, 2) for row in rows)
    attended = type(block).scaled_dot_product_attention(block, *padded, mask)
    return _unpad(attended.flatten(0, 1), places)


def _flash_attention(
    block: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, _: torch.Tensor | None
) -> torch.Tensor:
    """Return flash attention of texts of different lengths. It and ``q``, ``k``, ``v`` are (tokens, heads, size).

    The kernel needs a head size that is a multiple of 8, so zeros are added, which have no effect. The scale is the
    same as in LitGPT's attention.
    """
    starts, longest, size = block.texts.starts, block.texts.mask.shape[1], q.shape[-1]
    scale = block.mscale**2 / math.sqrt(block.config.attention_scores_scalar or block.config.head_size)
    if size % FLASH_HEAD_SIZE_MULTIPLE:
        q, k, v = (torch.nn.functional.pad(one, (0, -size % FLASH_HEAD_SIZE_MULTIPLE)) for one in (q, k, v))
    attended: torch.Tensor = torch.ops.aten._flash_attention_forward(
        q, k, v, starts, starts, longest, longest, 0.0, True, False, scale=scale
    )[0]
    return attended[..., :size]


def _suits_flash(block: Any, q: torch.Tensor, mask: torch.Tensor | None) -> bool:
    """Return whether flash attention for texts of different lengths can compute the model's attention."""
    plain = mask is None and block.config.attention_logit_softcapping is None
    return block.texts.starts is not None and plain and q.dtype in FLASH_TYPES and q.shape[-1] <= MAX_FLASH_HEAD_SIZE


def _has_flash(device: torch.device) -> bool:
    """Return whether PyTorch has flash attention for texts of different lengths on ``device``.

    It needs an NVIDIA GPU of compute capability 8.0 or newer (ATen/native/transformers/cuda/flash_attn/flash_api.cpp).
    AMD's kernels have not been tried.
    """
    if device.type != "cuda" or torch.cuda.get_device_properties(device).gcnArchName.startswith("gfx"):
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)
