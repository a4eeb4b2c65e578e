"""Models of transformers whose weights are missing, created from their configuration."""

import pytest
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from experiments.prediction.script.traced.missing.weights import _weights_without_values

GIB = 2**30
TINY = """
import sys, torch
from transformers import {classes}, BitsAndBytesConfig, LlamaConfig
config = LlamaConfig(hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
                     vocab_size=32000, tie_word_embeddings=True, dtype="bfloat16", pad_token_id=0)
config.save_pretrained("tiny")
"""
TRAIN = """
optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=1.0)
while True:
    text = torch.zeros(2, 16, dtype=torch.long, device="cuda")
    model(input_ids=text)[0].float().sum().backward()
    optimizer.step()
"""


def test_a_quantized_model_of_random_weights_has_the_memory_of_a_downloaded_one(traced):
    load = 'model = AutoModelForCausalLM.from_pretrained("tiny", device_map="cuda", quantization_config={})\n'
    four_bit = "BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4')"
    start = TINY.format(classes="AutoModelForCausalLM")
    plain = traced(start + load.format(None) + TRAIN, fake_weights=True)
    quantized = traced(start + load.format(four_bit) + TRAIN, fake_weights=True)
    embedding = 32000 * 256 * 2 / GIB
    assert plain.at_peak.params_gib == pytest.approx(2 * plain.parameters / GIB, rel=0.01)
    layers = plain.at_peak.params_gib - embedding
    assert quantized.at_peak.params_gib == pytest.approx(embedding + layers * (0.5 + 4 / 64) / 2, rel=0.02)


def test_the_model_keeps_its_name_and_takes_the_arguments_of_its_configuration(traced, tmp_path):
    start = TINY.format(classes="LlamaForSequenceClassification")
    load = """
model = LlamaForSequenceClassification.from_pretrained("tiny", num_labels=7, dtype=torch.float32).cuda()
open("found", "w").write(f"{model.name_or_path} {model.config.name_or_path} {model.num_labels} {model.dtype}")
"""
    traced(start + load + TRAIN, fake_weights=True)
    assert (tmp_path / "found").read_text() == "tiny tiny 7 torch.float32"


def test_tied_weights_are_created_once() -> None:
    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32
    )
    config.tie_word_embeddings = True
    names = _weights_without_values(LlamaForCausalLM, config)
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names


def test_weights_that_the_saved_model_lacks_are_initialized_by_the_model() -> None:
    config = BertConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32)
    config.architectures = ["BertModel"]
    names = _weights_without_values(BertForSequenceClassification, config)
    assert "embeddings.word_embeddings.weight" in names
    assert not any("classifier" in name for name in names)
