"""Simulate several GPUs of one process, over which accelerate spreads the parts of a model."""

from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook

from experiments.prediction.phantom.library import Phantom


def simulate_gpus(phantom: Phantom, count: int) -> None:
    """Show ``count`` GPUs to this process. Each part of a model allocates on the GPU that accelerate runs it on.

    PyTorch sees all tensors on the first GPU, so accelerate would copy the inputs of every module on another GPU. The
    replaced hooks copy tensors only between parts on different GPUs. Memory outside of the parts, such as memory for
    sampling tokens, is on the first GPU.
    """
    torch.cuda.device_count = lambda: count
    original_pre_forward, original_post_forward = AlignDevicesHook.pre_forward, AlignDevicesHook.post_forward
    current = 0

    def use_gpu(gpu: int) -> bool:
        nonlocal current
        changes, current = gpu != current, gpu
        phantom.set_gpu(gpu)
        return changes

    def pre_forward(hook: Any, module: Any, *inputs: Any, **options: Any) -> Any:
        moves = use_gpu(hook.execution_device)
        return original_pre_forward(hook, module, *inputs, **options) if moves else (inputs, options)

    def post_forward(hook: Any, module: Any, output: Any) -> Any:
        if not hook.io_same_device:
            return output
        use_gpu(0)
        hook.input_device = torch.device("cuda", 0)
        return original_post_forward(hook, module, output)

    replacements = {
        "pre_forward": pre_forward,
        "post_forward": post_forward,
        "init_hook": lambda hook, module: module,  # the weights are created on their GPUs
    }
    for name, replacement in replacements.items():
        setattr(AlignDevicesHook, name, replacement)
