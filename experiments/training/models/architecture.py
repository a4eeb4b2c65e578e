"""Build transformers configurations of the models in models.yaml, of their tiny versions, and of custom models."""

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
from experiments.suites.miniature import tiny_architecture
from experiments.suites.models import Model
from experiments.training.failures import first_line

VISION_SETTINGS: dict[Size, dict[str, Any]] = {
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
QFORMER_SETTINGS: dict[Size, dict[str, Any]] = {
    "full": {},
    "tiny": {
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "encoder_hidden_size": 32,
    },
}
QUERY_TOKEN_COUNTS = {"full": 32, "tiny": 4}
TINY_VOCABULARY_SIZE = 256
TINY_SETTINGS: dict[str, dict[str, Any]] = {
    "blip2-opt": {
        "hidden_size": 32,
        "ffn_dim": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
        "vocab_size": TINY_VOCABULARY_SIZE,
        "max_position_embeddings": 128,
    },
    "blip2-t5": {
        "d_model": 32,
        "d_ff": 96,
        "d_kv": 8,
        "num_layers": 2,
        "num_heads": 4,
        "vocab_size": TINY_VOCABULARY_SIZE,
    },
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": TINY_VOCABULARY_SIZE,
    },
    "gpt-neo": {
        "hidden_size": 256,  # wide enough that the rows' adapters are small compared with the layers
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "vocab_size": TINY_VOCABULARY_SIZE,
        "max_position_embeddings": 256,
        "bos_token_id": 255,
        "eos_token_id": 255,
    },
}
IMAGE_TOKEN_IDS = {"blip2-opt": {"full": 50265, "tiny": 255}, "blip2-t5": {"full": 32100, "tiny": 255}}
LANGUAGE_MODELS = {"blip2-opt": OPTConfig, "blip2-t5": T5Config, "llama": LlamaConfig, "gpt-neo": GPTNeoConfig}


def build_config(base_model: Model, size: Size) -> PretrainedConfig:
    """Return the configuration of a model, or of its tiny version with fewer and narrower layers of the same kinds.

    Raises InputError if transformers rejects the configuration, or if it has no tiny version.
    """
    if base_model.family == "transformers":
        return _custom_config(base_model, size)
    family = base_model.family
    language = LANGUAGE_MODELS[family](**base_model.architecture | (TINY_SETTINGS[family] if size == "tiny" else {}))
    return _blip2_config(language, base_model, size) if family in IMAGE_TOKEN_IDS else language


def model_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """Return the model class with a language head for ``config``. Raises InputError if transformers has none."""
    if isinstance(config, Blip2Config):
        return Blip2ForConditionalGeneration
    mapping: Any
    for mapping in (MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING):
        if type(config) in mapping:
            language_model: type[PreTrainedModel] = mapping[type(config)]
            return language_model
    raise InputError(
        f"model_type = {config.model_type!r}: transformers has no model with a language head for it; "
        "allowed: causal language models, encoder-decoders, blip-2"
    )


def has_untied_output_head(base_model: Model) -> bool:
    """Return True if the architecture states that the output head is separate from the input embedding.

    When transformers builds a model of the T5 family from such a configuration, it nevertheless ties the head to the
    embedding. The published checkpoints have a separate head.
    """
    language = base_model.architecture.get("text_config", base_model.architecture)
    return language.get("tie_word_embeddings", base_model.architecture.get("tie_word_embeddings")) is False


def _custom_config(base_model: Model, size: Size) -> PretrainedConfig:
    architecture = base_model.architecture if size == "full" else tiny_architecture(base_model.architecture)
    try:
        return AutoConfig.for_model(**architecture)
    except (StrictDataclassError, TypeError, ValueError) as error:
        reason = first_line(error).partition(". Should contain one of ")[0]
        problem = f"transformers rejects this configuration ({reason})"
        raise InputError(f"model_type = {base_model.architecture['model_type']!r}: {problem}") from None


def _blip2_config(language: PretrainedConfig, base_model: Model, size: Size) -> Blip2Config:
    family, vision = base_model.family, VISION_SETTINGS[size]
    if base_model.vision_layers and size == "full":
        vision = vision | {"num_hidden_layers": base_model.vision_layers}
    return Blip2Config(
        vision_config=Blip2VisionConfig(**vision).to_dict(),
        qformer_config=Blip2QFormerConfig(**QFORMER_SETTINGS[size]).to_dict(),
        text_config=language.to_dict(),
        num_query_tokens=QUERY_TOKEN_COUNTS[size],
        image_token_index=IMAGE_TOKEN_IDS[family][size],
        tie_word_embeddings=family == "blip2-opt",  # type: ignore[call-arg]
    )
