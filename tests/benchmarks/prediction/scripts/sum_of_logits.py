"""Forward and backward passes with the sum of the logits as the loss and no optimizer."""

import argparse
import json
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig

parser = argparse.ArgumentParser()
parser.add_argument("--config", type=Path, required=True, help="a config.json")
parser.add_argument("--batch", type=int, required=True)
parser.add_argument("--seq", type=int, required=True)
parser.add_argument("--dtype", default="float16", choices=["float16", "float32"])
options = parser.parse_args()

config = AutoConfig.for_model(**json.loads(options.config.read_text()))
config.use_cache = False
model = (
    getattr(transformers, config.architectures[0])
    ._from_config(config, dtype=getattr(torch, options.dtype))
    .to("cuda")
    .train()
)
for _ in range(3):
    texts = torch.randint(1, 1000, (options.batch, options.seq), device="cuda")
    model.zero_grad()
    model(input_ids=texts, attention_mask=torch.ones_like(texts)).logits.sum().backward()
