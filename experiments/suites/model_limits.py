"""Reject sizes in a model's configuration that no model can have, before anything is built from them."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class _SizeLimits(NamedTuple):
    """The lowest and the highest value of the sizes whose keys in a config.json match the pattern ``keys``."""

    keys: re.Pattern[str]
    lowest: int
    highest: int


LIMITS = (
    _SizeLimits(re.compile(r"num_(hidden_)?layers|n_layers?"), 1, 1_000),
    _SizeLimits(re.compile(r"num_(en|de)coder_layers|(en|de)coder_layers"), 0, 1_000),
    _SizeLimits(re.compile(r"(num|n|(en|de)coder)_((attention|key_value|kv)_)?heads?"), 1, 10_000),
    _SizeLimits(
        re.compile(r"hidden_size|intermediate_size|head_dim|d_model|d_ff|d_kv|ffn_dim|n_embd|n_inner"), 1, 1_000_000
    ),
    _SizeLimits(re.compile(r"vocab_size"), 1, 10_000_000),
    _SizeLimits(re.compile(r"max_position_embeddings|n_positions|n_ctx|max_seq_len"), 1, 100_000_000),
)
"""Limits of sizes: far above the largest published models, and small enough to trace a model with random weights."""


def describe_impossible_size(architecture: Mapping[str, Any]) -> str | None:
    """Return a message about the first size outside its limits, with the allowed values; None if there is none."""
    for name, value in _sizes(architecture):
        for keys, lowest, highest in LIMITS:
            if keys.fullmatch(name) and not (type(value) is int and lowest <= value <= highest):
                return f"{name} = {value!r:.40}: allowed: a whole number from {lowest} to {highest}"
    return None


def _sizes(architecture: Mapping[str, Any]) -> Iterator[tuple[str, int | float]]:
    """Yield the name and value of each number, also in lists and in nested mappings such as text_config."""
    for name, value in architecture.items():
        if isinstance(value, Mapping):
            yield from _sizes(value)
        for one in value if isinstance(value, list | tuple) else (value,):
            if isinstance(one, int | float):
                yield name, one
