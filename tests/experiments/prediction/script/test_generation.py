"""Texts that a script generates with transformers, and then trains on."""

GENERATE = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
sizes = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=128)
model = LlamaForCausalLM(LlamaConfig(**sizes)).cuda()
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
prompts = torch.ones(3, 5, dtype=torch.long, device="cuda")
while True:
    texts = model.generate(prompts, max_new_tokens=4, do_sample=True, pad_token_id=0, eos_token_id=1)
    open("texts", "a").write(f"{texts[:, 4:].tolist()[-1]}")
    model(texts).logits.sum().backward()
    optimizer.step()
"""


def test_generated_texts_have_the_same_tokens_each_time_and_the_maximum_length(trace_in_new_process, tmp_path):
    (found,) = trace_in_new_process(GENERATE)
    assert found.ended == "stopped"
    assert (tmp_path / "texts").read_text() == 3 * "[1, 127, 127, 127, 127]"
