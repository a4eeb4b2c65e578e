"""Import everything that each trace imports before its script. A warm process imports this module; its forks trace.

A fork installs the phantom device like a new process does, but it has already loaded the device's library and imported
the modules.
"""

import os

from experiments.prediction.phantom.library import load
from experiments.prediction.script.traced import device
from experiments.suites.cards import cards
from experiments.system.files import cache_folder

os.environ.update(device.QUIET_VARIABLES)
PHANTOM = load(cache_folder())
setattr(device, "load", lambda cache: PHANTOM)  # noqa: B010 - replaced for the forks

import torch  # noqa: E402

from experiments.prediction.phantom.cuda import replace_cuda  # noqa: E402

is_initialized = torch.cuda.is_initialized
replace_cuda(PHANTOM, next(iter(cards().values())))

from experiments.prediction.loops import generate  # noqa: E402, F401
from experiments.prediction.script.traced import build_prediction, launchers, missing, process, watch  # noqa: E402, F401

torch.cuda.is_initialized = is_initialized  # the warm process looks for real GPUs before it forks
