"""Optimizers by the names that `--optim` takes."""

from typing import Any

import torch

from experiments.prediction.custom import LoopOptimizer

LEARNING_RATE = 1e-5


def optimizer_of(name: LoopOptimizer, default: LoopOptimizer) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """Return the class of an optimizer and its arguments; ``default``: what adamw means in this loop."""
    if name == "adamw":
        name = default
    own: dict[str, tuple[Any, dict[str, Any]]] = {
        "adamw_fused": (torch.optim.AdamW, {"fused": True}),
        "adamw_foreach": (torch.optim.AdamW, {"foreach": True}),
        "adamw_loop": (torch.optim.AdamW, {"foreach": False}),
        "sgd": (torch.optim.SGD, {}),
        "sgd_momentum": (torch.optim.SGD, {"momentum": 0.9}),
    }
    kind, options = own.get(name) or _of_library(name)
    return kind, {"lr": LEARNING_RATE, **options}


def _of_library(name: str) -> tuple[Any, dict[str, Any]]:
    if name == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor, {"scale_parameter": False, "relative_step": False}
    from bitsandbytes import optim

    kinds = {
        "adam_8bit": optim.Adam8bit,
        "adamw_8bit": optim.AdamW8bit,
        "paged_adamw": optim.PagedAdamW,
        "paged_adamw_8bit": optim.PagedAdamW8bit,
        "lion": optim.Lion,
        "lion_8bit": optim.Lion8bit,
    }
    return kinds[name], {}
