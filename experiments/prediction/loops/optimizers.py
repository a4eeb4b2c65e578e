"""Find the optimizer class for a value of `--optim`."""

from typing import Any

import torch

from experiments.prediction.custom import TORCHAO_OPTIMIZERS, LoopOptimizer
from experiments.training.models.host_optimizer import HostAdamW

LEARNING_RATE = 1e-5


def find_optimizer(
    name: LoopOptimizer, adamw_variant: LoopOptimizer
) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """Return the class of an optimizer and its arguments.

    adamw_variant: the optimizer that the calling loop uses if ``name`` is ``adamw``.
    """
    if name == "adamw":
        name = adamw_variant
    torch_optimizers: dict[str, tuple[Any, dict[str, Any]]] = {
        "adamw_fused": (torch.optim.AdamW, {"fused": True}),
        "adamw_foreach": (torch.optim.AdamW, {"foreach": True}),
        "adamw_loop": (torch.optim.AdamW, {"foreach": False}),
        "adamw_cpu": (HostAdamW, {}),
        "sgd": (torch.optim.SGD, {}),
        "sgd_momentum": (torch.optim.SGD, {"momentum": 0.9}),
    }
    optimizer_class, options = torch_optimizers.get(name) or _find_library_optimizer(name)
    return optimizer_class, {"lr": LEARNING_RATE, **options}


def _find_library_optimizer(name: str) -> tuple[Any, dict[str, Any]]:
    if name == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor, {"scale_parameter": False, "relative_step": False}
    if name in TORCHAO_OPTIMIZERS:
        from torchao.optim import AdamW4bit, AdamW8bit

        return {"adamw_4bit": AdamW4bit, "adamw_8bit_torchao": AdamW8bit}[name], {}
    from bitsandbytes import optim

    classes = {
        "adam_8bit": optim.Adam8bit,
        "adamw_8bit": optim.AdamW8bit,
        "paged_adamw": optim.PagedAdamW,
        "paged_adamw_8bit": optim.PagedAdamW8bit,
        "lion": optim.Lion,
        "lion_8bit": optim.Lion8bit,
    }
    return classes[name], {}
