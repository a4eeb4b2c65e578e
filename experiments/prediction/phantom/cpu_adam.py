"""Replacements of optimizers on the CPU, DeepSpeed's CPU Adam and PyTorch's fused AdamW: logged, but not computed."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

PARAMETERS_POSITION = 8
"""Position of the parameters in the arguments of adam_update."""


def skip_deepspeed_adam(log: Callable[[str], None]) -> None:
    """Replace DeepSpeed's CPU Adam with an optimizer that allocates the same state, computes nothing, and is logged."""
    from deepspeed.ops.op_builder import CPUAdamBuilder

    def adam_update(*arguments: Any) -> None:
        log(_operation_key(arguments[PARAMETERS_POSITION]))

    CPUAdamBuilder.load = lambda self: SimpleNamespace(
        create_adam=lambda *_: None, adam_update=adam_update, destroy_adam=lambda *_: None
    )


def skip_fused_adamw(log: Callable[[str], None]) -> None:
    """Replace PyTorch's fused AdamW: in host memory it computes nothing and is logged, on the GPU it is unchanged."""
    fused = torch._fused_adamw_

    def fused_adamw(parameters: list[torch.Tensor], *arguments: Any, **options: Any) -> None:
        if parameters[0].is_cuda:
            fused(parameters, *arguments, **options)
            return
        for parameter in parameters:
            log(_operation_key(parameter))

    setattr(torch, "_fused_adamw_", fused_adamw)  # noqa: B010 - mypy rejects the assignment to a function


def _operation_key(parameters: torch.Tensor) -> str:
    return json.dumps(["host::adam", {"type": "Float", "sizes": [parameters.numel()], "host": 1}])
