"""The training steps of `litgpt finetune` and `litgpt finetune_lora`, on texts of one length."""

import argparse

import litgpt.lora
import litgpt.model
import torch
from lightning.fabric import Fabric
from litgpt.utils import chunked_cross_entropy

LAYERS = ("query", "key", "value", "projection", "mlp", "head")
parser = argparse.ArgumentParser()
parser.add_argument("--name", required=True, help="name in litgpt's config.py")
parser.add_argument("--batch", type=int, required=True)
parser.add_argument("--seq", type=int, required=True)
parser.add_argument("--accumulate", type=int, default=1)
parser.add_argument("--precision", default="bf16-true")
parser.add_argument("--rank", type=int, help="of the adapters; default: all weights are trained")
parser.add_argument("--layers", nargs="*", default=["query", "value"], choices=LAYERS, help="layers with adapters")
options = parser.parse_args()

fabric = Fabric(accelerator="cuda", devices=1, precision=options.precision)
if options.rank:
    adapters = {f"lora_{name}": name in options.layers for name in LAYERS}
    config = litgpt.lora.Config.from_name(
        options.name, lora_r=options.rank, lora_alpha=16, lora_dropout=0.05, **adapters
    )
else:
    config = litgpt.model.Config.from_name(options.name)
with fabric.init_module(empty_init=True):
    model = litgpt.lora.GPT(config) if options.rank else litgpt.model.GPT(config)
if options.rank:
    litgpt.lora.mark_only_lora_as_trainable(model)
model = fabric.setup_module(model)
model.max_seq_length = options.seq
optimizer = fabric.setup_optimizers(torch.optim.AdamW(model.parameters()))
model.train()
for _ in range(10):
    for _ in range(options.accumulate):
        texts = torch.randint(1, 1000, (options.batch, options.seq), device="cuda")
        logits = model(texts, lm_head_chunk_size=128)
        logits[-1] = logits[-1][..., :-1, :]
        fabric.backward(chunked_cross_entropy(logits, texts[..., 1:]) / options.accumulate)
    optimizer.step()
    optimizer.zero_grad()
