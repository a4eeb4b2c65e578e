"""Replace CUDA by the phantom device for unchanged code."""

import os
from pathlib import Path

from experiments.prediction.phantom.library import Phantom, load
from experiments.prediction.script.traced.trackers import turn_off_trackers
from experiments.suites.attention_kernels import kernel_properties
from experiments.suites.cards import card_named

QUIET_VARIABLES = {
    "TORCHDYNAMO_DISABLE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
"""Variables that disable compilation, telemetry, and PyTorch's warnings about kernels."""


def install_phantom_device(card_name: str, cache: Path, folder: Path) -> Phantom:
    """Make CUDA appear as the card ``card_name`` until this process ends; return the simulated device.

    Experiment trackers upload nothing. folder: a temporary folder for what they write.

    Call this function before torch is imported. Raises InputError if the device cannot be compiled on this machine.
    """
    os.environ.update(QUIET_VARIABLES)
    turn_off_trackers(folder)
    phantom = load(cache)
    import torch

    from experiments.prediction.phantom.cpu_adam import skip_fused_adamw
    from experiments.prediction.phantom.cuda import replace_cuda
    from experiments.prediction.script.traced import imports
    from experiments.prediction.script.traced.missing.files import replace_missing_files

    card = card_named(card_name)
    torch.set_num_threads(1)
    replace_cuda(phantom, card)
    phantom.install(kernel_properties(card))
    phantom.count_host_memory()
    skip_fused_adamw(phantom.log_operation)
    imports.prepare_imports(phantom)
    imports.record_compile_calls()
    replace_missing_files()
    return phantom
