"""The operations of eager attention in the version of transformers that was timed (4, before its attention interface).

They follow the graphs of operations that the source published (scripts/asplos/results/opgraph). Today's classes of the
models call this function instead of their own eager attention, which adds the mask otherwise or not at all.
"""

import math
from typing import Any

NAME = "eager_of_transformers_4"


def register() -> str:
    """Make the function available to the models; return its name."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    return NAME


def attend(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any = None, dropout: float = 0.0, **_: Any
) -> tuple[Any, Any]:
    """Return the attention of one layer, and its weights. Queries, keys, values: batch, heads, tokens, size."""
    import torch

    kind = module.config.model_type
    scores = MASKED[kind](torch.matmul(query, key.transpose(-1, -2)), query.shape[-1])
    weights = torch.nn.functional.softmax(scores, dim=-1)
    weights = torch.nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def _mask_bert(scores: Any, size: int) -> Any:
    """Scale, and add a mask of the padding."""
    return scores / math.sqrt(size) + scores.new_empty(scores.shape[0], 1, 1, scores.shape[-1])


def _mask_gpt2(scores: Any, size: int) -> Any:
    """Scale by a tensor, and replace the scores of later tokens."""
    import torch

    scaled = scores / torch.full([], math.sqrt(size), device=scores.device)
    earlier = torch.ones(1, 1, *scores.shape[-2:], dtype=torch.bool, device=scores.device)
    return torch.where(earlier, scaled, _lowest(scores))


def _mask_opt(scores: Any, _: int) -> Any:
    """Add a mask of later tokens, and limit the result. The queries are scaled before."""
    import torch

    masked = scores + scores.new_empty(scores.shape[0], 1, *scores.shape[-2:])
    return torch.max(masked, _lowest(scores))


def _lowest(scores: Any) -> Any:
    import torch

    return torch.full([], torch.finfo(scores.dtype).min, dtype=scores.dtype, device=scores.device)


MASKED = {"bert": _mask_bert, "gpt2": _mask_gpt2, "opt": _mask_opt}
