"""End the texts that a script generates at their maximal length, because the generated tokens are unknown."""

from typing import Any

import torch


def ignore_ends_of_texts() -> None:
    """Replace transformers' criterion for the end of a text by one that no text meets.

    Without it, a text whose tokens are unknown would never end.
    """
    from transformers.generation.stopping_criteria import EosTokenCriteria

    def never(_: Any, tokens: torch.Tensor, *__: Any, **___: Any) -> torch.Tensor:
        return torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)

    EosTokenCriteria.__call__ = never
