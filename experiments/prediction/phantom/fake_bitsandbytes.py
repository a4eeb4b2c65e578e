"""Import bitsandbytes for the phantom device: its Python code runs unchanged, and its kernels do nothing."""

import ctypes
import functools
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

import torch

from experiments.prediction.phantom.kernels.keys import operation_key
from experiments.prediction.phantom.library import Phantom

MATRIX_PRODUCT = "bitsandbytes::gemm_4bit"
REGISTER_KERNEL = torch.library.register_kernel


class EmptyLibrary:
    """Replacement of the compiled library of bitsandbytes, whose functions do nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def import_bitsandbytes(phantom: Phantom) -> None:
    """Import bitsandbytes, if it is installed, like on a machine with a GPU. torch.cuda must be replaced first.

    The device logs the operations of bitsandbytes from then on.
    """
    if find_spec("bitsandbytes") is None:
        return
    setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 0)  # noqa: B010 - the stubs have it only with CUDA
    with (
        patch.object(ctypes.cdll, "LoadLibrary", lambda _: EmptyLibrary()),
        patch.object(torch.library, "register_kernel", functools.partial(_register_logged_kernel, phantom)),
    ):
        import bitsandbytes
    bitsandbytes.functional.get_paged = _allocate_paged


def _register_logged_kernel(phantom: Phantom, name: str, device_types: Any, function: Any = None) -> Any:
    """Register a kernel as torch.library.register_kernel does. Each call of a kernel for CUDA is logged."""
    if function is None:
        return functools.partial(_register_logged_kernel, phantom, name, device_types)

    @functools.wraps(function)
    def run_and_log(*arguments: Any, **options: Any) -> Any:
        count_before = phantom.operation_count()
        result = function(*arguments, **options)
        if name == MATRIX_PRODUCT and phantom.operation_count() > count_before:
            phantom.log_operation(_dequantization_key(*arguments, **options))
        else:
            phantom.log_operation(operation_key(name, [*arguments, *options.values()]))
        return result

    REGISTER_KERNEL(name, device_types, run_and_log if device_types == "cuda" else function)
    return function


def _dequantization_key(
    inputs: torch.Tensor, weight: torch.Tensor, shape: Any, absmax: Any, blocksize: int, kind: str, *_: Any, **__: Any
) -> str:
    """Return the key of the dequantization of a weight, after which PyTorch computes a product with many rows."""
    return operation_key("bitsandbytes::dequantize_4bit", [weight, absmax, blocksize, kind, list(shape), inputs.dtype])


def _allocate_paged(*shape: int, dtype: torch.dtype = torch.float32, device: Any = None) -> torch.Tensor:
    """Return a tensor of managed memory, which PyTorch's allocator does not count.

    CUDA moves managed memory between host and device.
    """
    tensor = torch.empty(shape, dtype=dtype, device="cpu")
    tensor.is_paged, tensor.page_deviceid = True, 0  # type: ignore[attr-defined]
    return tensor
