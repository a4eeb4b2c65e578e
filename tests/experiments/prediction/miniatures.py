"""Tiny rows for the tracer, with every engine and strategy that affects memory."""

from typing import Any

from tests.support.training.tiny_rows import LLAMA, LORA, NF4, spec

LITGPT: dict[str, Any] = {"model": LLAMA, "dataset": "constant", "max_length": 32, "warmup_steps": 1}
LONG: dict[str, Any] = {"card": "v100_32gb", "dataset": "constant", "max_length": 2000}
LARGE: dict[str, Any] = {"batch_size": 64, "train_samples": 128, "dataset": "constant", "max_length": 500}

SETTINGS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "sgd": {"optimizer": "sgd"},
    "ddp": {"devices": 2, "strategy": "ddp"},
    "fsdp": {"devices": 2, "strategy": "fsdp"},
    "qlora": {"precision": "bf16-true", "lora": LORA, "quantization": NF4},
    "adam_8bit": {"optimizer": "adam_8bit"},
    "adamw_cpu": {"optimizer": "adamw_cpu"},
    "large batch": LARGE,
    "offload": {"activation_offload": True, **LARGE},
    "checkpointing": {"activation_checkpointing": True, **LARGE},
    "selective": {"activation_checkpointing": "selective", **LARGE},
    "hf_trainer": {"engine": "hf_trainer", "model": LLAMA, "dataset": "constant"},
    "litgpt": {"engine": "litgpt", **LITGPT},
    "packed": {"engine": "litgpt", **LITGPT, "packing": True, "fused_optimizer": True},
    "chunked": {"engine": "litgpt", **LITGPT, "chunked_loss": True},
    "compiled": {"engine": "litgpt", **LITGPT, "compile": True},
    "litgpt_trainer": {"engine": "litgpt_trainer", **LITGPT},
    "too long": {"batch_size": 2600, "train_samples": 5200, **LONG},
    "far too long": {"batch_size": 6000, "train_samples": 12000, **LONG},
    "refused": {"engine": "litgpt", **LITGPT, "warmup_steps": 0},
}
ROWS = {name: spec(row=name, length="peak", **settings) for name, settings in SETTINGS.items()}
