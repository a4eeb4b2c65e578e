"""A training loop with DeepSpeed in bf16. The optimizer comes from DeepSpeed's configuration or from the script."""

import argparse

import deepspeed
import models
import torch

parser = argparse.ArgumentParser()
parser.add_argument("--stage", type=int, required=True)
parser.add_argument("--optimizer", choices=["configured", "client"], required=True)
options = parser.parse_args()
config = {
    "train_micro_batch_size_per_gpu": 4,
    "bf16": {"enabled": True},
    "gradient_clipping": 1.0,
    "zero_optimization": {"stage": options.stage},
    "zero_allow_untested_optimizer": True,
}
model, optimizer = models.build("llama"), None
model.config.use_cache = False
if options.optimizer == "client":
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
else:
    config["optimizer"] = {"type": "AdamW", "params": {"lr": 1e-5}}
engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), optimizer=optimizer, config=config)
for _ in range(10):
    loss = engine(**models.batch_of("llama", 4, 512)).loss
    engine.backward(loss)
    engine.step()
