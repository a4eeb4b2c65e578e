"""Configurations of transformers for the models of models.yaml, their miniatures, and any model that is given whole."""

from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    GPTNeoConfig,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    T5Config,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING

from experiments.errors import InputError
from experiments.suites.choices import Size
from experiments.suites.models import Model
from experiments.training.failures import first_line

VISION: dict[Size, dict[str, Any]] = {
    "full": {
        "image_size": 224,
        "patch_size": 14,
        "hidden_size": 1408,
        "intermediate_size": 6144,
        "num_hidden_layers": 39,
        "num_attention_heads": 16,
    },
    "tiny": {
        "image_size": 28,
        "patch_size": 14,
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
}
QFORMER: dict[Size, dict[str, Any]] = {
    "full": {},
    "tiny": {
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "encoder_hidden_size": 32,
    },
}
QUERY_TOKENS = {"full": 32, "tiny": 4}
TINY_VOCABULARY = 256
TINY: dict[str, dict[str, Any]] = {
    "blip2-opt": {
        "hidden_size": 32,
        "ffn_dim": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
        "vocab_size": TINY_VOCABULARY,
        "max_position_embeddings": 128,
    },
    "blip2-t5": {
        "d_model": 32,
        "d_ff": 96,
        "d_kv": 8,
        "num_layers": 2,
        "num_heads": 4,
        "vocab_size": TINY_VOCABULARY,
    },
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": TINY_VOCABULARY,
    },
    "gpt-neo": {
        "hidden_size": 256,  # wide enough that adapters of the rows' ranks are small beside their layers
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "vocab_size": TINY_VOCABULARY,
        "max_position_embeddings": 256,
        "bos_token_id": 255,
        "eos_token_id": 255,
    },
}
IMAGE_TOKENS = {"blip2-opt": {"full": 50265, "tiny": 255}, "blip2-t5": {"full": 32100, "tiny": 255}}
LANGUAGE_MODELS = {"blip2-opt": OPTConfig, "blip2-t5": T5Config, "llama": LlamaConfig, "gpt-neo": GPTNeoConfig}


def build_config(facts: Model, size: Size) -> PretrainedConfig:
    """The architecture of a model, or its miniature: the same parts, few and narrow.

    Raises InputError for a configuration that transformers does not take, and for the miniature of a model that was
    given whole.
    """
    if facts.family == "transformers":
        return _whole_config(facts, size)
    language = LANGUAGE_MODELS[facts.family](**facts.architecture | (TINY[facts.family] if size == "tiny" else {}))
    return _blip2_config(language, facts.family, size) if facts.family in IMAGE_TOKENS else language


def model_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """What transformers trains such a configuration as; InputError when it is none of the kinds that rows are about."""
    if isinstance(config, Blip2Config):
        return Blip2ForConditionalGeneration
    mapping: Any
    for mapping in (MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING):
        if type(config) in mapping:
            found: type[PreTrainedModel] = mapping[type(config)]
            return found
    raise InputError(
        f"model_type = {config.model_type!r}: transformers has no model with a language head for it; "
        "allowed: causal language models, encoder-decoders, blip-2"
    )


def has_own_head(facts: Model) -> bool:
    """True when the architecture says that its output head is not the input embedding.

    Of T5's family transformers ties them all the same in a model that it builds from the configuration; the published
    checkpoints keep a head of their own.
    """
    language = facts.architecture.get("text_config", facts.architecture)
    return language.get("tie_word_embeddings", facts.architecture.get("tie_word_embeddings")) is False


def _whole_config(facts: Model, size: Size) -> PretrainedConfig:
    if size == "tiny":
        raise InputError("size = 'tiny': only the models of models.yaml have a miniature; allowed: full")
    try:
        return AutoConfig.for_model(**facts.architecture)
    except (StrictDataclassError, TypeError, ValueError) as error:
        reason = first_line(error).partition(". Should contain one of ")[0]
        problem = f"transformers does not take this configuration ({reason})"
        raise InputError(f"model_type = {facts.architecture['model_type']!r}: {problem}") from None


def _blip2_config(language: PretrainedConfig, family: str, size: Size) -> Blip2Config:
    return Blip2Config(
        vision_config=Blip2VisionConfig(**VISION[size]).to_dict(),
        qformer_config=Blip2QFormerConfig(**QFORMER[size]).to_dict(),
        text_config=language.to_dict(),
        num_query_tokens=QUERY_TOKENS[size],
        image_token_index=IMAGE_TOKENS[family][size],
        tie_word_embeddings=family == "blip2-opt",  # type: ignore[call-arg]
    )
