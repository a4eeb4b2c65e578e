"""Build the optimizer of a row."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch.nn import Parameter

from experiments.suites.settings import Settings
from experiments.training.models.backward_optimizer import BackwardOptimizer
from experiments.training.models.host_optimizer import HostAdamW

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adamw_cpu": HostAdamW,
    "sgd": torch.optim.SGD,
}


def build_optimizer(settings: Settings, parameters: Iterable[Parameter]) -> torch.optim.Optimizer:
    """Return the row's optimizer over the trainable ``parameters``; its state is created by the first step."""
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    if settings.optimizer_in_backward:
        return BackwardOptimizer(partial(_build, settings), trainable)
    return _build(settings, trainable)


def _build(settings: Settings, trainable: Iterable[Parameter]) -> torch.optim.Optimizer:
    options = {key: value for key in ("weight_decay", "betas") if (value := getattr(settings, key)) is not None}
    if settings.optimizer == "adam_8bit":
        import bitsandbytes

        return bitsandbytes.optim.Adam8bit(trainable, lr=settings.lr, **options)
    if settings.optimizer == "deepspeed_cpu":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(trainable, lr=settings.lr, **options)
    optimizer_class: Any = OPTIMIZERS[settings.optimizer]
    fused = {"fused": True} if settings.fused_optimizer else {}
    optimizer: torch.optim.Optimizer = optimizer_class(trainable, lr=settings.lr, **options, **fused)
    return optimizer
