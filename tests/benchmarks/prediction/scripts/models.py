"""Models of ten architectures with random weights, between 0.1 and 1.3 billion parameters, and a batch for each."""

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    Qwen2Config,
    T5Config,
    ViTConfig,
)

CAUSAL = {
    "gpt2": GPT2Config(n_embd=1024, n_layer=24, n_head=16),
    "llama": LlamaConfig(
        hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4
    ),
    "qwen2": Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    "gemma2": Gemma2Config(
        hidden_size=1152,
        intermediate_size=4608,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=128,
        attn_implementation="eager",
    ),
    "bloom": BloomConfig(hidden_size=1024, n_layer=24, n_head=16),
    "mixtral": MixtralConfig(
        hidden_size=1024,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=4,
        num_local_experts=8,
    ),
    "opt": OPTConfig(hidden_size=1024, ffn_dim=4096, num_hidden_layers=24, num_attention_heads=16),
    "neox": GPTNeoXConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=16, num_attention_heads=16),
}
T5 = T5Config(
    d_model=768, d_ff=2048, num_layers=12, num_heads=12, decoder_start_token_id=0, feed_forward_proj="gated-gelu"
)
BERT, VIT = BertConfig(num_hidden_layers=12), ViTConfig(num_hidden_layers=12)
NAMES = (*CAUSAL, "t5", "bert", "vit")


def build(name, dtype=torch.float32):
    """Return the model ``name`` with random weights of the type ``dtype``."""
    if name in CAUSAL:
        return AutoModelForCausalLM.from_config(CAUSAL[name], dtype=dtype)
    kinds = {
        "t5": (AutoModelForSeq2SeqLM, T5),
        "bert": (AutoModelForSequenceClassification, BERT),
        "vit": (AutoModelForImageClassification, VIT),
    }
    kind, config = kinds[name]
    return kind.from_config(config, dtype=dtype)


def sample(name, length):
    """Return a sample of ``length`` tokens, or an image, for the model ``name``; without the dimension of the batch."""
    if name == "vit":
        return {"pixel_values": torch.randn(3, 224, 224), "labels": torch.tensor(1)}
    text = torch.randint(5, 30000, (length,))
    return {"input_ids": text, "labels": torch.tensor(1) if name == "bert" else text.clone()}


def batch_of(name, size, length):
    """Return a batch on the GPU."""
    samples = [sample(name, length) for _ in range(size)]
    return {key: torch.stack([one[key] for one in samples]).cuda() for key in samples[0]}
