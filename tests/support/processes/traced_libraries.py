"""Import everything that each trace imports before its script. A warm process imports this module; its forks trace.

A fork installs the phantom device like a new process does, but it has already loaded the device's library, imported
the modules and read the tables of operation times. Many traced scripts import transformers' Trainer, which takes two
seconds, or DeepSpeed, which takes another.
"""

import os

from experiments.prediction.phantom.library import load
from experiments.prediction.script.traced import device
from experiments.prediction.times.table import Table, table_files
from experiments.suites.cards import cards
from experiments.system.files import cache_folder

os.environ.update(device.QUIET_VARIABLES)
PHANTOM = load(cache_folder())
setattr(device, "load", lambda cache: PHANTOM)  # noqa: B010 - replaced for the forks

import torch  # noqa: E402

from experiments.prediction.phantom.cuda import replace_cuda  # noqa: E402

is_initialized = torch.cuda.is_initialized
replace_cuda(PHANTOM, next(iter(cards().values())))

from experiments.prediction.script.traced import (  # noqa: E402
    build_prediction,  # noqa: F401
    imports,
    launchers,  # noqa: F401
    process,  # noqa: F401
    watch,  # noqa: F401
)

imports.prepare_imports(PHANTOM)
import deepspeed  # noqa: E402, F401
import torch.distributed.run  # noqa: E402
from transformers import Trainer  # noqa: E402, F401
from transformers.models.llama import modeling_llama  # noqa: E402, F401

from experiments.prediction.loops import generate, optimizers  # noqa: E402, F401
from experiments.prediction.phantom import cpu_adam, gpus, ranks  # noqa: E402, F401
from experiments.prediction.script.traced import started_ranks  # noqa: E402, F401

torch.cuda.is_initialized = is_initialized  # the warm process looks for real GPUs before it forks

READ = Table.read
PREPARED = {path: READ(path) for path in table_files()}
for table in PREPARED.values():
    table.prepare()
setattr(Table, "read", lambda path: PREPARED.get(path) or READ(path))  # noqa: B010 - replaced for the forks
