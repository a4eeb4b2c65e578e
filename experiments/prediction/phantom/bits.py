"""bitsandbytes on the phantom device: its own Python code for CUDA, with kernels that do nothing."""

import ctypes
from typing import Any
from unittest.mock import patch

import torch


class NoKernels:
    """Replacement of bitsandbytes' compiled library: every function can be called and does nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def import_bitsandbytes() -> None:
    """Import bitsandbytes as on a machine with a GPU. torch.cuda must be replaced already."""
    setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 0)  # noqa: B010 - typed as there with CUDA alone
    with patch.object(ctypes.cdll, "LoadLibrary", lambda _: NoKernels()):
        import bitsandbytes
    bitsandbytes.functional.get_paged = _managed


def _managed(*shape: int, dtype: torch.dtype = torch.float32, device: Any = None) -> torch.Tensor:
    """Return managed memory, which CUDA moves between host and device, outside PyTorch's allocator."""
    made = torch.empty(shape, dtype=dtype, device="cpu")
    made.is_paged, made.page_deviceid = True, 0  # type: ignore[attr-defined]
    return made
