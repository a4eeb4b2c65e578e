"""Train a model with the Trainer of transformers."""

import argparse
import tempfile

import models
import torch
from transformers import Trainer, TrainingArguments

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="gpt2", choices=models.NAMES)
parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--bf16", action="store_true")
parser.add_argument("--checkpointing", action="store_true")
parser.add_argument("--optim", default="adamw_torch_fused")
options = parser.parse_args()

arguments = TrainingArguments(
    output_dir=tempfile.mkdtemp(),
    per_device_train_batch_size=options.batch,
    max_steps=100,
    bf16=options.bf16,
    gradient_checkpointing=options.checkpointing,
    optim=options.optim,
    report_to=[],
    save_strategy="no",
    disable_tqdm=True,
)
data = [models.sample(options.model, 512) for _ in range(options.batch * 8)]
model = models.build(options.model, torch.float32)
Trainer(model, arguments, train_dataset=data).train()
