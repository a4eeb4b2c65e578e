"""Put the phantom device in place of CUDA, for code that knows nothing of it."""

import os
from pathlib import Path

from experiments.prediction.phantom.library import Phantom, load
from experiments.suites.attention_kernels import kernels_of
from experiments.suites.cards import card_named

QUIET = {
    "TORCHDYNAMO_DISABLE": "1",
    "WANDB_MODE": "disabled",
    "MLFLOW_TRACKING_URI": "file:///dev/null",
    "COMET_MODE": "disabled",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
"""Compilation, trackers and telemetry are off; that kernels are replaced is not reported."""


def phantom_device(card_name: str, cache: Path) -> Phantom:
    """Return the device, shown to this process as that card until the process ends.

    Must be called before torch is imported. Raises InputError if the device cannot be compiled here.
    """
    os.environ.update(QUIET)
    phantom = load(cache)
    import torch

    from experiments.prediction.phantom.cuda import replace_cuda
    from experiments.prediction.script.traced import imports

    card = card_named(card_name)
    torch.set_num_threads(1)
    replace_cuda(phantom, card)
    phantom.install(kernels_of(card))
    phantom.watch_host()
    imports.prepare_imports()
    imports.note_compile()
    return phantom
