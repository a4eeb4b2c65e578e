"""The update of a parameter by torchao's AdamW in 4 and 8 bit: the memory of its compiled code, without its arithmetic.

torchao compiles the update of each parameter (`single_param_adam` in torchao/optim/adam.py). Without compilation, it
would allocate a tensor for each of its operations. The compiled code allocates three things for each quantized state:
the new scales, the new values in 32 bit, and in 4 bit, the code of each value as an integer of 64 bit, before two codes
are packed into a byte. The sizes and the order match the code that PyTorch 2.11 generates for torchao 0.18, and the
allocations that were recorded on an H200. States that are not quantized are updated in place.

Not modeled: at the first step, PyTorch times variants of the compiled code, which takes a buffer of the size of the
card's L2 cache and copies of the parameter. At this time, the optimizer has no states of the following parameters yet.
"""

from collections.abc import Callable
from typing import Any

import torch

CODE_TYPES: dict[str, torch.dtype | None] = {"OptimState4bit": torch.int64, "OptimState8bit": None}
"""By class of state: the data type of the tensor of codes that the compiled code allocates; None: no such tensor."""


def is_modeled(*states: Any) -> bool:
    """Return whether the memory of an update with these states is known: each is in 4 bit, 8 bit, or not quantized."""
    return all(_is_unquantized(state) or type(state).__name__ in CODE_TYPES for state in map(_local, states))


class CompiledUpdate:
    """Replacement of torchao's update of a parameter, which allocates what the compiled code does.

    States of other classes, such as those in 8-bit floating point, are updated by torchao's own code.
    """

    def __init__(self, update: Callable[..., None]) -> None:
        self._update = update

    def __call__(self, parameter: Any, gradient: Any, step: Any, average: Any, square: Any, *others: Any) -> None:
        """Update the parameter; the first of ``others`` is the maximum of AMSGrad, or None."""
        states = [average, square, *(one for one in others[:1] if one is not None)]
        if is_modeled(*states):
            allocate_buffers([_local(state) for state in states])
        else:
            self._update(parameter, gradient, step, average, square, *others)


def allocate_buffers(states: list[Any]) -> None:
    """Allocate the buffers of the compiled code for all states at once, then free them.

    In 4 bit, a kernel for each state packs the codes. After each kernel, the buffers of its state are freed.
    """
    quantized = [state for state in states if not _is_unquantized(state)]
    scales = [torch.empty_like(state.scale) for state in quantized]
    values = [_empty(state, torch.float32) for state in quantized]
    codes = [_empty(state, dtype) for state in quantized if (dtype := CODE_TYPES[type(state).__name__])]
    while codes:
        del values[0], codes[0], scales[0]
    for buffers in (values, scales):
        while buffers:
            del buffers[0]


def _empty(state: Any, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(state.numel(), dtype=dtype, device=state.scale.device)


def _local(state: Any) -> Any:
    """Return this rank's part of a sharded state (a DTensor); other states unchanged."""
    return state.to_local() if hasattr(state, "to_local") else state


def _is_unquantized(state: Any) -> bool:
    return type(state) is torch.Tensor
