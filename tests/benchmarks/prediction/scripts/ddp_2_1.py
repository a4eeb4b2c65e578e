"""Train in a plain loop on several GPUs with the memory that DDP of PyTorch 2.1 needs.

The loop is that of mem_llm.py, which cases.yaml names: a loss without its logits, and gradients that all microsteps
reduce. Two things differ from today's DDP:

- NCCL's process group records its stream on the buffers of the first broadcast (Tensor.record_stream). The host is
  ahead of the links, so these buffers of 250 MiB, which hold a copy of all parameters, are free only after DDP has
  allocated its buckets.
- No group keeps the first buckets until the host has waited for the GPU, which loss.item() does here.
"""

import argparse
import contextlib
import json
import os
from pathlib import Path

import torch
from torch.distributed import init_process_group
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoConfig, AutoModelForCausalLM

BROADCAST_BYTES = 250 * 2**20

parser = argparse.ArgumentParser()
parser.add_argument("--config", type=Path, required=True, help="a config.json")
parser.add_argument("--mixed", action="store_true", help="autocast to bf16")
parser.add_argument("--microsteps", type=int, default=1)
options = parser.parse_args()


def broadcast_buffers(tensors):
    buffers, size = [], 0
    for tensor in tensors:
        size += tensor.nbytes
        if size >= BROADCAST_BYTES:
            buffers.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
            size = 0
    return [*buffers, torch.empty(size, dtype=torch.uint8, device="cuda")]


device = int(os.environ["LOCAL_RANK"])
torch.cuda.set_device(device)
init_process_group("nccl")
config = AutoConfig.for_model(**json.loads(options.config.read_text()))
model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).cuda()
sent = broadcast_buffers([*model.parameters(), *model.buffers()])
ddp = DistributedDataParallel(model, device_ids=[device], init_sync=False)
del sent
optimizer = torch.optim.SGD(ddp.parameters(), lr=2e-5)
precision = torch.autocast("cuda", dtype=torch.bfloat16) if options.mixed else contextlib.nullcontext()
for _ in range(10):
    for _ in range(options.microsteps):
        text = torch.randint(config.vocab_size, (1, 8), device="cuda")
        with precision:
            outputs = ddp(input_ids=text, labels=text.clone(), attention_mask=torch.ones_like(text, dtype=torch.bool))
            loss = outputs.loss
            del outputs
        (loss / options.microsteps).backward()
        loss.item()
        del loss
    optimizer.step()
    optimizer.zero_grad()
