"""The miniature of a model: the architecture of its config.json with fewer and narrower layers, to train on a CPU."""

from collections.abc import Iterable
from typing import Any

from experiments.errors import InputError

LAYERS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
)
WIDTH = ("hidden_size", "n_embd", "n_embed", "d_model", "word_embed_proj_dim")
HEADS = (
    "num_attention_heads",
    "n_head",
    "n_heads",
    "num_heads",
    "encoder_attention_heads",
    "decoder_attention_heads",
)
KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
INNER_WIDTH = (
    "intermediate_size",
    "ffn_dim",
    "ffn_hidden_size",
    "n_inner",
    "d_ff",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "moe_intermediate_size",
)
EXPERTS = ("num_experts", "num_local_experts")
FEW_LAYERS, NARROW, FEW_HEADS, FEW_EXPERTS, VOCABULARY = 2, 256, 4, 8, 256
"""The width is large enough for adapters to be small compared with the layers."""
INNER = 4 * NARROW


def miniature(architecture: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of a config.json for a model of the same type with two layers of at most 256 features.

    Raises InputError for an architecture that does not state its layers, width and attention heads.
    """
    for what, names in (("layers", LAYERS), ("width", WIDTH), ("attention heads", HEADS)):
        if not _stated(architecture, names):
            raise InputError(
                f"the architecture does not state its {what}, so the model has no tiny version;"
                f" allowed: one of {', '.join(names)}"
            )
    layers = max(architecture[name] for name in _stated(architecture, LAYERS))
    tiny = {name: _per_layer(value, layers) for name, value in architecture.items()}
    tiny |= _at_most(architecture, LAYERS, FEW_LAYERS)
    if max(architecture[name] for name in _stated(architecture, WIDTH)) > NARROW:
        tiny |= _at_most(architecture, WIDTH, NARROW) | _at_most(architecture, INNER_WIDTH, INNER)
        tiny |= dict.fromkeys(_stated(architecture, HEADS), FEW_HEADS) | _key_value_heads(architecture)
    if "attention_types" in architecture:  # GPT-Neo: kinds of attention, and how often they are repeated
        tiny["attention_types"] = [[["global", "local"], FEW_LAYERS // 2]]
    tiny |= _at_most(architecture, EXPERTS, FEW_EXPERTS) | _at_most(architecture, ("vocab_size",), VOCABULARY)
    return tiny | _tokens(architecture)


def _stated(architecture: dict[str, Any], names: Iterable[str]) -> list[str]:
    return [name for name in names if isinstance(architecture.get(name), int) and architecture[name] > 0]


def _at_most(architecture: dict[str, Any], names: Iterable[str], most: int) -> dict[str, Any]:
    return {name: min(architecture[name], most) for name in _stated(architecture, names)}


def _per_layer(value: Any, layers: int) -> Any:
    """Cut a list that has an entry for each layer; leave out factors for each frequency of a position."""
    if isinstance(value, list) and len(value) == layers:
        return value[:FEW_LAYERS]
    if isinstance(value, dict) and any(isinstance(part, list) for part in value.values()):
        return None
    return value


def _key_value_heads(architecture: dict[str, Any]) -> dict[str, int]:
    """Keep whether each head, a group of heads, or all heads have keys and values of their own."""
    heads = max(architecture[name] for name in _stated(architecture, HEADS))
    kept = {1: 1, heads: FEW_HEADS}
    return {name: kept.get(architecture[name], FEW_HEADS // 2) for name in _stated(architecture, KEY_VALUE_HEADS)}


def _tokens(architecture: dict[str, Any]) -> dict[str, Any]:
    """Return special tokens that are within the vocabulary."""
    named = {name: value for name, value in architecture.items() if name.endswith("_token_id")}
    return {
        name: [min(one, VOCABULARY - 1) for one in value] if isinstance(value, list) else min(value, VOCABULARY - 1)
        for name, value in named.items()
        if value is not None
    }
