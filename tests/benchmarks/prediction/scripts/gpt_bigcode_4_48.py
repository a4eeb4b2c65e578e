"""Train GPTBigCode in transformers' Trainer with the memory that transformers 4.48.1 needs for it.

Two things differ from today's model. The loss comes from bf16 logits. config.use_cache stays true under checkpointing,
so the outputs of a forward pass hold every layer's keys and values, which are views of c_attn's whole output.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, Trainer, TrainingArguments

parser = argparse.ArgumentParser()
parser.add_argument("--config", type=Path, required=True, help="a config.json")
parser.add_argument("--batch", type=int, required=True)
parser.add_argument("--seq", type=int, required=True)
parser.add_argument("--fsdp", action="store_true")
options = parser.parse_args()


IN_NO_BACKWARD = -1
cache = []


def keep_keys_and_values(c_attn, inputs, output):
    if torch._C._current_graph_task_id() == IN_NO_BACKWARD:
        cache.append(output)


def loss_of(outputs, labels, num_items_in_batch=None):
    logits = outputs.logits[..., :-1, :].contiguous()
    loss = torch.nn.functional.cross_entropy(logits.view(-1, logits.size(-1)), labels[..., 1:].reshape(-1))
    cache.clear()
    return loss


config = AutoConfig.for_model(**json.loads(options.config.read_text()))
config.use_cache = False
model = getattr(transformers, config.architectures[0])._from_config(config, dtype=torch.bfloat16)
for block in model.transformer.h:
    block.attn.c_attn.register_forward_hook(keep_keys_and_values)
sharded = {"fsdp": "full_shard auto_wrap", "fsdp_config": {"version": 1, "use_orig_params": True}}
arguments = TrainingArguments(
    output_dir=tempfile.mkdtemp(),
    per_device_train_batch_size=options.batch,
    max_steps=10,
    gradient_checkpointing=True,
    optim="adamw_torch",
    report_to=[],
    save_strategy="no",
    logging_strategy="no",
    disable_tqdm=True,
    dataloader_pin_memory=False,
    **(sharded if options.fsdp else {}),
)
text = torch.randint(5, 1000, (options.seq,))
data = [{"input_ids": text, "labels": text.clone()}] * (options.batch * arguments.world_size * 10)
Trainer(model, arguments, train_dataset=data, compute_loss_func=loss_of).train()
