"""Compile the repeated blocks of a model with torch.compile."""

from collections.abc import Iterable

import torch
from torch import nn

from experiments.suites.settings import Settings


def compile_blocks(blocks: Iterable[nn.Module], settings: Settings, device: torch.device) -> None:
    """Compile each of a model's ``blocks`` in place, if the row's settings enable compilation.

    Equal blocks are compiled once. If texts have different lengths, the length is a variable of the compiled code, so
    that a new length needs no compilation. Other numbers in a block, such as an epsilon, never change; as constants of
    the compiled code, they save a third of the time that a compilation takes. On a CPU, the operations are only
    captured and not compiled, so that no C++ compiler is needed. PyTorch compiles nothing while a dispatch mode is
    active: in the first micro-step, in which floating-point operations are counted, and with tiny models on a CPU,
    whose memory is measured.
    """
    if not settings.compile:
        return
    backend = "inductor" if device.type == "cuda" else "aot_eager"
    torch._dynamo.config.specialize_float = True
    for block in blocks:
        block.compile(backend=backend, dynamic=settings.dataset != "constant")
