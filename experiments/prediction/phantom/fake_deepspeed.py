"""Replace the optimizers that DeepSpeed compiles: their Python code allocates the same state, and nothing is computed.

Updates on the GPU are logged as PyTorch's fused AdamW for the same tensors, updates in host memory as CPU Adam.
"""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from experiments.errors import InputError
from experiments.prediction.phantom.cpu_adam import cpu_update_key

LAMB_BLOCKS = 512
"""Elements of each of LAMB's two buffers for norms (csrc/lamb/fused_lamb_cuda.cpp of DeepSpeed)."""
TensorLists = Sequence[list[torch.Tensor]]


def replace_deepspeed_optimizers(log: Callable[[str], None]) -> None:
    """Make DeepSpeed load replacements of its compiled optimizers: Adam, Lion, LAMB and Adagrad.

    log: logs the key of an operation.
    """
    from deepspeed.ops import op_builder

    replacements = {
        "FusedAdamBuilder": SimpleNamespace(multi_tensor_adam=_update_on_gpu),
        "FusedLionBuilder": SimpleNamespace(multi_tensor_lion=_update_on_gpu),
        "FusedLambBuilder": SimpleNamespace(lamb=_update_by_lamb),
        **{f"CPU{name}Builder": _cpu_optimizer(name.lower(), log) for name in ("Adam", "Lion", "Adagrad")},
    }
    for name, module in replacements.items():
        getattr(op_builder, name).load = lambda _, *__, module=module, **___: module
    _reject_other_gpu_modules()


def _reject_other_gpu_modules() -> None:
    """Make DeepSpeed raise InputError for a module that it compiles for the GPU and that has no replacement."""
    from deepspeed.ops.op_builder.builder import CUDAOpBuilder, MissingCUDAException

    compile_module = CUDAOpBuilder.jit_load

    def jit_load(builder: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return compile_module(builder, *arguments, **options)
        except MissingCUDAException:
            raise InputError(f"DeepSpeed compiles {builder.name!r} for the GPU; predictions cannot run it") from None

    CUDAOpBuilder.jit_load = jit_load


def _cpu_optimizer(name: str, log: Callable[[str], None]) -> SimpleNamespace:
    """Return the replacement of the compiled module of a CPU optimizer."""

    def update(*arguments: Any) -> None:
        parameters = next(argument for argument in arguments if isinstance(argument, torch.Tensor))
        log(cpu_update_key(parameters))

    functions = {f"create_{name}": lambda *_: None, f"{name}_update": update, f"destroy_{name}": lambda *_: None}
    return SimpleNamespace(**functions)


def _update_on_gpu(chunk: int, overflow: torch.Tensor, tensors: TensorLists, *_: Any) -> None:
    """Run PyTorch's fused AdamW. tensors: gradients, parameters, and a list for each state of the optimizer."""
    gradients, parameters, *states = tensors
    averages, squares = [*states, []][:2]
    with torch.no_grad():
        torch._fused_adamw_(
            parameters,
            gradients,
            averages,
            squares,
            [],
            [],
            lr=0.001,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.01,
            eps=1e-08,
            amsgrad=False,
            maximize=False,
        )


def _update_by_lamb(
    parameter: torch.Tensor, copy: torch.Tensor, average: torch.Tensor, square: torch.Tensor, gradient: Any, *_: Any
) -> torch.Tensor:
    """Return LAMB's coefficient, after an update that needs two buffers for norms."""
    dtype = torch.float32 if parameter.dtype == torch.float16 else parameter.dtype
    buffers = [torch.empty(size, dtype=dtype, device=parameter.device) for size in (LAMB_BLOCKS, LAMB_BLOCKS, 1)]
    _update_on_gpu(0, copy, [[gradient], [parameter], [average], [square]])
    return buffers[-1]
