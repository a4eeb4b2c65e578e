"""Count executed floating-point operations."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class FlopCount(TorchDispatchMode):
    """Dispatch mode that counts floating-point operations, including those of backward passes and of recomputation.

    total: number of operations so far, from the formulas of torch.utils.flop_counter. Element-wise operations are not
    counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            if "scaled_dot_product" in func.__name__:
                args = expand_grouped_heads(args)
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def expand_grouped_heads(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return attention arguments whose keys and values have as many heads as the queries, as the formulas require.

    With grouped-query attention, several query heads share a head of keys and values. Each query head is still
    multiplied with this head.
    """
    heads = max(arg.shape[1] for arg in args if isinstance(arg, torch.Tensor) and arg.dim() == 4)
    return tuple(
        arg.new_empty((arg.shape[0], heads, *arg.shape[2:]), device="meta")
        if isinstance(arg, torch.Tensor) and arg.dim() == 4
        else arg
        for arg in args
    )
