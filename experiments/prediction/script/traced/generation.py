"""Texts that a script generates: each is as long as possible, because the sampled tokens are unknown."""

from typing import Any

import torch


def ignore_ends_of_texts() -> None:
    """Sample always the last token of the vocabulary, and no end of a text.

    The values of sampled tokens are known then, so that masks and lengths that a script computes from them are, too.
    Without them, a text would never end.
    """
    from transformers.generation.stopping_criteria import EosTokenCriteria

    sample = torch.multinomial

    def sample_last(weights: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        tokens = sample(weights, *arguments, **options)
        return torch.full_like(tokens, weights.shape[-1] - 1) if tokens.is_cuda else tokens

    def end_no_text(_: Any, tokens: torch.Tensor, *__: Any, **___: Any) -> torch.Tensor:
        return torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)

    replacements: list[tuple[Any, str, Any]] = [
        (torch, "multinomial", sample_last),
        (EosTokenCriteria, "__call__", end_no_text),
    ]
    for owner, name, replacement in replacements:
        setattr(owner, name, replacement)
