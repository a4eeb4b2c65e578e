"""Import bitsandbytes for the phantom device: its Python code runs unchanged, and its kernels do nothing."""

import ctypes
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

import torch


class EmptyLibrary:
    """Replacement of the compiled library of bitsandbytes, whose functions do nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def import_bitsandbytes() -> None:
    """Import bitsandbytes, if it is installed, like on a machine with a GPU. torch.cuda must be replaced first."""
    if find_spec("bitsandbytes") is None:
        return
    setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 0)  # noqa: B010 - the stubs have it only with CUDA
    with patch.object(ctypes.cdll, "LoadLibrary", lambda _: EmptyLibrary()):
        import bitsandbytes
    bitsandbytes.functional.get_paged = _allocate_paged


def _allocate_paged(*shape: int, dtype: torch.dtype = torch.float32, device: Any = None) -> torch.Tensor:
    """Return a tensor of managed memory, which PyTorch's allocator does not count.

    CUDA moves managed memory between host and device.
    """
    tensor = torch.empty(shape, dtype=dtype, device="cpu")
    tensor.is_paged, tensor.page_deviceid = True, 0  # type: ignore[attr-defined]
    return tensor
