"""The tiny version of a model, for training on a CPU: its config.json with fewer and narrower layers."""

from collections.abc import Iterable
from typing import Any

from experiments.errors import InputError

LAYER_KEYS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
)
WIDTH_KEYS = ("hidden_size", "n_embd", "n_embed", "d_model", "word_embed_proj_dim")
HEAD_KEYS = (
    "num_attention_heads",
    "n_head",
    "n_heads",
    "num_heads",
    "encoder_attention_heads",
    "decoder_attention_heads",
)
KEY_VALUE_HEAD_KEYS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
INNER_WIDTH_KEYS = (
    "intermediate_size",
    "ffn_dim",
    "ffn_hidden_size",
    "n_inner",
    "d_ff",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "moe_intermediate_size",
)
EXPERT_KEYS = ("num_experts", "num_local_experts")
TINY_LAYERS, TINY_WIDTH, TINY_HEADS, TINY_EXPERTS, TINY_VOCABULARY = 2, 256, 4, 8, 256
"""Sizes of the tiny model. The width is large enough that LoRA adapters stay small compared with the layers."""
TINY_INNER_WIDTH = 4 * TINY_WIDTH


def tiny_architecture(architecture: dict[str, Any]) -> dict[str, Any]:
    """Return the config.json of a model of the same type with at most two layers of at most 256 features.

    Raises InputError for an architecture that does not state its layers, width and attention heads.
    """
    for what, names in (("layers", LAYER_KEYS), ("width", WIDTH_KEYS), ("attention heads", HEAD_KEYS)):
        if not _keys_present(architecture, names):
            raise InputError(
                f"the architecture does not state its {what}, so the model has no tiny version;"
                f" required: one of {', '.join(names)}"
            )
    layers = max(architecture[name] for name in _keys_present(architecture, LAYER_KEYS))
    tiny = {name: _shorten_layer_lists(value, layers) for name, value in architecture.items()}
    tiny |= _limit_values(architecture, LAYER_KEYS, TINY_LAYERS)
    if max(architecture[name] for name in _keys_present(architecture, WIDTH_KEYS)) > TINY_WIDTH:
        tiny |= _limit_values(architecture, WIDTH_KEYS, TINY_WIDTH) | _limit_values(
            architecture, INNER_WIDTH_KEYS, TINY_INNER_WIDTH
        )
        tiny |= dict.fromkeys(_keys_present(architecture, HEAD_KEYS), TINY_HEADS) | _key_value_heads(architecture)
    if "attention_types" in architecture:  # GPT-Neo: kinds of attention, and how often they are repeated
        tiny["attention_types"] = [[["global", "local"], TINY_LAYERS // 2]]
    tiny |= _limit_values(architecture, EXPERT_KEYS, TINY_EXPERTS) | _limit_values(
        architecture, ("vocab_size",), TINY_VOCABULARY
    )
    return tiny | _special_tokens(architecture)


def _keys_present(architecture: dict[str, Any], names: Iterable[str]) -> list[str]:
    return [name for name in names if isinstance(architecture.get(name), int) and architecture[name] > 0]


def _limit_values(architecture: dict[str, Any], names: Iterable[str], limit: int) -> dict[str, Any]:
    return {name: min(architecture[name], limit) for name in _keys_present(architecture, names)}


def _shorten_layer_lists(value: Any, layers: int) -> Any:
    """Return a list with one entry per layer shortened to TINY_LAYERS, and other values unchanged.

    For a mapping with lists (frequency factors of rotary embeddings), whose lengths depend on the width, return None.
    """
    if isinstance(value, list) and len(value) == layers:
        return value[:TINY_LAYERS]
    if isinstance(value, dict) and any(isinstance(part, list) for part in value.values()):
        return None
    return value


def _key_value_heads(architecture: dict[str, Any]) -> dict[str, int]:
    """Return tiny counts of key-value heads that keep the attention multi-head, grouped-query or multi-query."""
    heads = max(architecture[name] for name in _keys_present(architecture, HEAD_KEYS))
    tiny_heads = {1: 1, heads: TINY_HEADS}
    return {
        name: tiny_heads.get(architecture[name], TINY_HEADS // 2)
        for name in _keys_present(architecture, KEY_VALUE_HEAD_KEYS)
    }


def _special_tokens(architecture: dict[str, Any]) -> dict[str, Any]:
    """Return the special token ids, limited to the tiny vocabulary."""
    token_ids = {name: value for name, value in architecture.items() if name.endswith("_token_id")}
    return {
        name: [min(one, TINY_VOCABULARY - 1) for one in value]
        if isinstance(value, list)
        else min(value, TINY_VOCABULARY - 1)
        for name, value in token_ids.items()
        if value is not None
    }
