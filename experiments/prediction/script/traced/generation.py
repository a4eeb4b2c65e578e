"""Texts that a script generates: each is as long as possible, because the sampled tokens are unknown."""

from typing import Any

import torch


def ignore_ends_of_texts() -> None:
    """Make each sampled token the last of the vocabulary, and let no text end before its maximum length.

    The values of the sampled tokens are then known, and so are the masks and lengths that a script computes from them.
    A text whose tokens are unknown would never end.
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


def split_transcripts_on_host() -> None:
    """Let Whisper look for its timestamp tokens in host memory, where their positions are known.

    On the simulated GPU, the function nonzero returns as many positions as there can be. A transcript without timestamp
    tokens is one segment, as with a GPU.
    """
    from transformers.models.whisper.generation_whisper import WhisperGenerationMixin

    retrieve: Any = WhisperGenerationMixin._retrieve_segment

    def retrieve_on_host(seek_sequence: torch.Tensor, **options: Any) -> Any:
        segments, offset = retrieve(seek_sequence=seek_sequence.cpu(), **options)
        for segment in segments:
            segment["tokens"] = segment["tokens"].to(seek_sequence.device)
        return segments, offset

    setattr(WhisperGenerationMixin, "_retrieve_segment", staticmethod(retrieve_on_host))  # noqa: B010 - as in imports
