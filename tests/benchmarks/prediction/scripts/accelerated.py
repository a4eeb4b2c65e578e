"""A training loop with Accelerate, which handles the mixed precision and the accumulation of gradients."""

import models
import torch
from accelerate import Accelerator

accelerator = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=2)
model = models.build("llama")
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
loader = torch.utils.data.DataLoader([models.sample("llama", 512) for _ in range(64)], batch_size=4)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
for _ in range(10):
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch).loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
