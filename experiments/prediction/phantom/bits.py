"""bitsandbytes on the phantom device: its own Python for CUDA, over a library of kernels that do nothing."""

import sys
from typing import Any

import torch


class NoKernels:
    """Stands for bitsandbytes' compiled library: every function in it can be called and does nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def import_bitsandbytes() -> None:
    """Import bitsandbytes as on a machine with a GPU. torch.cuda must speak for the phantom device already."""
    torch._C._cuda_getCurrentRawStream = lambda index: 0  # type: ignore[attr-defined]
    import bitsandbytes  # noqa: F401

    for name, module in list(sys.modules.items()):
        if name.startswith("bitsandbytes") and hasattr(module, "lib"):
            module.lib = NoKernels()
