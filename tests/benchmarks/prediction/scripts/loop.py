"""A plain training loop."""

import argparse

import models
import torch

OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-5),
    "adamw-loop": lambda parameters: torch.optim.AdamW(parameters, lr=1e-5, foreach=False),
    "adamw-fused": lambda parameters: torch.optim.AdamW(parameters, lr=1e-5, fused=True),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-5),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=1e-5, momentum=0.9),
    "adafactor": lambda parameters: torch.optim.Adafactor(parameters, lr=1e-5),
}
parser = argparse.ArgumentParser()
parser.add_argument("--model", default="gpt2", choices=models.NAMES)
parser.add_argument("--optimizer", default="adamw", choices=OPTIMIZERS)
parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--length", type=int, default=512)
parser.add_argument("--accumulate", type=int, default=1)
parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "amp", "amp-fp16"])
parser.add_argument("--checkpointing", action="store_true")
parser.add_argument("--clip", action="store_true")
options = parser.parse_args()

model = models.build(options.model, torch.bfloat16 if options.precision == "bf16" else torch.float32).cuda()
model.train()
if options.checkpointing:
    model.gradient_checkpointing_enable()
optimizer = OPTIMIZERS[options.optimizer](model.parameters())
amp = {"amp": torch.bfloat16, "amp-fp16": torch.float16}.get(options.precision)
scaler = torch.amp.GradScaler(enabled=amp == torch.float16)
for _ in range(100):
    for _ in range(options.accumulate):
        batch = models.batch_of(options.model, options.batch, options.length)
        with torch.autocast("cuda", dtype=amp, enabled=amp is not None):
            loss = model(**batch).loss / options.accumulate
        scaler.scale(loss).backward()
    if options.clip:
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
