"""DeepSpeed's CPU Adam on the phantom device."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

FIRST_TENSOR = 8
"""Position of the parameters in the arguments of adam_update."""


def skip_cpu_adam(log: Callable[[str], None]) -> None:
    """Replace DeepSpeed's CPU Adam with an optimizer that allocates the same state, computes nothing, and is logged."""
    from deepspeed.ops.op_builder import CPUAdamBuilder

    def adam_update(*arguments: Any) -> None:
        parameters = arguments[FIRST_TENSOR]
        log(json.dumps(["host::adam", {"type": "Float", "sizes": [parameters.numel()], "host": 1}]))

    CPUAdamBuilder.load = lambda self: SimpleNamespace(
        create_adam=lambda *_: None, adam_update=adam_update, destroy_adam=lambda *_: None
    )
