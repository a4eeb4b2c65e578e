"""Floating point operations as they are executed."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class FlopCount(TorchDispatchMode):
    """Adds up floating-point operations of everything that runs inside, backward passes and recomputation included.

    Formulas are those of torch.utils.flop_counter; element-wise operations count as nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            if "scaled_dot_product" in func.__name__:
                args = ungrouped(args)
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def ungrouped(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """An attention's arguments with as many heads of keys and values as of queries, which the formulas ask for.

    Grouped queries share heads of keys and values; each is multiplied as often as there are queries.
    """
    heads = max(arg.shape[1] for arg in args if isinstance(arg, torch.Tensor) and arg.dim() == 4)
    return tuple(
        arg.new_empty((arg.shape[0], heads, *arg.shape[2:]), device="meta")
        if isinstance(arg, torch.Tensor) and arg.dim() == 4
        else arg
        for arg in args
    )
