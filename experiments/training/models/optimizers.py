"""The optimizers that a recipe can name."""

from collections.abc import Iterable

import torch
from torch.nn import Parameter

from experiments.suites.settings import Settings


def build_optimizer(settings: Settings, parameters: Iterable[Parameter]) -> torch.optim.Optimizer:
    """The row's optimizer over the parameters that are trained; state is made in its first step."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    options = {key: value for key in ("weight_decay", "betas") if (value := getattr(settings, key)) is not None}
    if settings.optimizer == "adam_8bit":
        import bitsandbytes

        return bitsandbytes.optim.Adam8bit(trained, lr=settings.lr, **options)
    if settings.optimizer == "deepspeed_cpu":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(trained, lr=settings.lr, **options)
    kind = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[settings.optimizer]
    return kind(trained, lr=settings.lr, **options)
