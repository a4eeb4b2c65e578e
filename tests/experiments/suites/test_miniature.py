"""The tiny versions of models, from the keys of their config.json."""

import pytest

from experiments.errors import InputError
from experiments.suites.miniature import (
    HEAD_KEYS,
    LAYER_KEYS,
    TINY_INNER_WIDTH,
    TINY_VOCABULARY,
    TINY_WIDTH,
    WIDTH_KEYS,
    tiny_architecture,
)
from tests.support.training.architectures import PUBLISHED


def published_config(architecture, names):
    return [architecture[name] for name in names if name in architecture]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_miniature_has_fewer_layers_a_smaller_width_and_the_same_keys_as_its_model(name):
    full, tiny = PUBLISHED[name], tiny_architecture(PUBLISHED[name])
    assert tiny.keys() == full.keys()
    assert tiny["model_type"] == full["model_type"]
    assert set(published_config(tiny, LAYER_KEYS)) == {2}
    assert set(published_config(tiny, WIDTH_KEYS)) == {TINY_WIDTH}
    assert all(TINY_WIDTH % heads == 0 for heads in published_config(tiny, HEAD_KEYS))
    assert max(published_config(tiny, ("intermediate_size", "ffn_dim", "d_ff")), default=0) <= TINY_INNER_WIDTH
    assert tiny["vocab_size"] == TINY_VOCABULARY


@pytest.mark.parametrize("name", PUBLISHED)
def test_special_tokens_are_in_the_vocabulary_of_a_miniature(name):
    tokens = [value for key, value in tiny_architecture(PUBLISHED[name]).items() if key.endswith("_token_id")]
    ids = [one for value in tokens for one in (value if isinstance(value, list) else [value])]
    assert all(one < TINY_VOCABULARY for one in ids)


@pytest.mark.parametrize(("of_all", "kept"), [(32, 4), (8, 2), (1, 1)])
def test_a_miniature_keeps_the_ratio_of_attention_heads_to_key_value_heads(of_all, kept):
    full = PUBLISHED["mistral-7b"] | {"num_key_value_heads": of_all}
    assert (tiny_architecture(full)["num_attention_heads"], tiny_architecture(full)["num_key_value_heads"]) == (4, kept)


def test_a_miniature_shortens_lists_with_one_entry_per_layer_and_no_others():
    full = PUBLISHED["qwen2-0.5b"] | {"layer_types": ["full_attention"] * 24, "other": [1, 2, 3]}
    tiny = tiny_architecture(full)
    assert tiny["layer_types"] == ["full_attention"] * 2
    assert tiny["other"] == [1, 2, 3]


def test_the_miniature_of_a_small_model_keeps_its_width_and_heads():
    small = {"model_type": "llama", "hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 6}
    assert tiny_architecture(small) == small | {"num_hidden_layers": 2}


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("n_layer", "its layers, .*n_layer"),
        ("n_embd", "its width, .*n_embd"),
        ("n_head", "its attention heads, .*n_head"),
    ],
)
def test_an_architecture_without_layers_width_or_heads_is_rejected(missing, message):
    architecture = {key: value for key, value in PUBLISHED["gpt2"].items() if key != missing}
    with pytest.raises(InputError, match=f"^the architecture does not state {message}") as rejected:
        tiny_architecture(architecture)
    assert "\n" not in str(rejected.value)
