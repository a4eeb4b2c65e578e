"""Fine-tune a pretrained model of the Llama architecture.

    python fine_tune.py FOLDER

FOLDER: the folder of the model. Without it, the script ends after its imports.
"""

import sys

import torch
from transformers import LlamaForCausalLM

if len(sys.argv) > 1:
    model: torch.nn.Module = LlamaForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
    model.cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    for _ in range(100):
        tokens = torch.zeros(4, 512, dtype=torch.int64, device="cuda")
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
