"""Updates by optimizers in host memory: they are logged, but not computed."""

import json
from collections.abc import Callable
from typing import Any

import torch


def skip_fused_adamw(log: Callable[[str], None]) -> None:
    """Replace PyTorch's fused AdamW. An update in host memory is only logged; an update on the GPU is unchanged."""
    fused = torch._fused_adamw_

    def fused_adamw(parameters: list[torch.Tensor], *arguments: Any, **options: Any) -> None:
        if parameters[0].is_cuda:
            fused(parameters, *arguments, **options)
            return
        for parameter in parameters:
            log(cpu_update_key(parameter))

    setattr(torch, "_fused_adamw_", fused_adamw)  # noqa: B010 - mypy rejects the assignment to a function


def cpu_update_key(parameters: torch.Tensor) -> str:
    """Return the key with which the log names an update of ``parameters`` by an optimizer in host memory."""
    return json.dumps(["host::adam", {"type": "Float", "sizes": [parameters.numel()], "host": 1}])
