"""Admission control: reject rows that a machine cannot run, and runs without enough disk space."""

import shutil
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from experiments.errors import InputError
from experiments.results.provenance import versions
from experiments.suites.cards import card_named, card_of_device
from experiments.suites.choices import Precision
from experiments.suites.row_spec import RowSpec
from experiments.suites.settings import Settings
from experiments.system.files import GIB
from provision.models import Gpu, Node

DISK_PER_ROW_GIB = 0.05
SPARE_DISK_GIB = 1.0
HOST_MEMORY_PER_RANK_GIB = {"full": 8.0, "tiny": 1.5}
OFFLOAD_BYTES_PER_PARAMETER = 20
OFFLOAD_SPARE_GIB = 10.0
CHECKPOINT_BYTES_PER_PARAMETER = 12
BYTES_PER_WEIGHT: dict[Precision, int] = {"32-true": 4, "bf16-mixed": 4, "bf16-true": 2}
INFERENCE_OVERHEAD = 1.2
FIRST_BITSANDBYTES_FOR_CPU = (0, 50)
"""First version of bitsandbytes with CPU kernels; pyproject.toml requires it. The labs' version 0.44 needs a GPU."""


def rejection_reason(spec: RowSpec, node: Node, host_memory_gib: float, is_local: bool = True, nodes: int = 1) -> str:
    """Return in one line why ``nodes`` nodes like ``node`` cannot run the row; '' if they can.

    host_memory_gib: host memory of each node. is_local: whether the row would use the packages and compilers that are
    installed on this machine. A row in a container or on another machine does not use them.
    """
    settings = spec.settings
    if is_local and settings.optimizer == "deepspeed_cpu" and (missing := missing_build_tool()):
        return f"DeepSpeed compiles its CPU Adam on first use and finds no {missing}"
    if is_local and not (node.gpus and settings.gpus) and (why := _bitsandbytes_rejection_reason(settings)):
        return why
    if not settings.gpus:
        return _host_memory_shortage(spec, host_memory_gib, "the model on the CPU") if spec.size == "full" else ""
    if not node.gpus:
        return "no GPU: full size needs one; size tiny runs anywhere" if spec.size == "full" else ""
    nodes_used = settings.nodes_to_use(nodes)
    needed_gpus = settings.world_size // nodes_used
    if needed_gpus > len(node.gpus):
        found = f"there {'is' if len(node.gpus) == 1 else 'are'} {len(node.gpus)}"
        of_each = f" on each of {nodes_used} nodes" if nodes_used > 1 else ""
        return f"{needed_gpus} GPUs{of_each} are needed, {found}; --gpus-per-node runs the row on fewer"
    if spec.size == "tiny":
        return ""
    for gpu in node.gpus:
        if why := too_small_reason(gpu, spec.card):
            return why
    return _host_memory_shortage(spec, host_memory_gib, "offload") if settings.uses_host_memory else ""


def _host_memory_shortage(spec: RowSpec, host_memory_gib: float, part: str) -> str:
    """Return why the host memory is not enough for a part of the row, such as 'offload'; '' if it is enough."""
    needed = host_memory_needed_gib(spec)
    if needed <= host_memory_gib:
        return ""
    return f"{part} needs {needed:.0f} GiB of host memory, the host has {host_memory_gib:.0f} GiB"


def _bitsandbytes_rejection_reason(settings: Settings) -> str:
    """Return why the installed bitsandbytes cannot run the row on a CPU; '' if it can."""
    installed = versions().get("bitsandbytes")
    if installed is None or not settings.uses_bitsandbytes:
        return ""
    if tuple(map(int, installed.split(".")[:2])) >= FIRST_BITSANDBYTES_FOR_CPU:
        return ""
    first = ".".join(map(str, FIRST_BITSANDBYTES_FOR_CPU))
    return f"bitsandbytes {installed} needs a GPU; {first} and newer also run on CPUs"


def missing_build_tool() -> str:
    """Return the tool that is missing to compile a C++ extension, and its package; '' if all tools are installed."""
    if not shutil.which("c++"):
        return "C++ compiler (package g++)"
    return "" if Path(sysconfig.get_path("include"), "Python.h").exists() else "Python.h (package python3-dev)"


def too_small_reason(gpu: Gpu, card_name: str) -> str:
    """Return why ``gpu`` cannot run rows for a card; '' if it is a GPU of this model or can emulate the card."""
    card = card_named(card_name)
    if card_of_device(gpu.name, gpu.memory_gib) == card_name or card.device_is_large_enough(gpu.memory_gib):
        return ""
    return f"device {gpu.name} has {gpu.memory_gib:.1f} GiB, {card_name} needs {card.memory_gib:.1f} GiB"


def host_memory_needed_gib(spec: RowSpec) -> float:
    """Return the host memory to reserve for the row, GiB.

    DeepSpeed's offload takes for each parameter 4 bytes for the master weight, 8 for Adam's moments, 4 for the
    gradient, 2 for the accumulated gradient and 2 for the updated weight that is copied back (stage_1_and_2.py;
    measured with 12.2e9 parameters: 231 GiB). AdamW on the host takes two values of the weight's type for each
    parameter. For offloaded activations, the size of the card's memory is reserved. A model on the CPU takes 1.2
    times the size of its weights, as CSC's guide estimates for inference, and the libraries take 1.5 GiB.
    """
    settings, parameters = spec.settings, spec.base_model.parameters
    weights_gib = parameters * BYTES_PER_WEIGHT[settings.precision] / GIB
    if spec.size == "full" and not settings.gpus:
        return HOST_MEMORY_PER_RANK_GIB["tiny"] + INFERENCE_OVERHEAD * weights_gib
    if spec.size == "full" and settings.uses_host_memory:
        needed = OFFLOAD_SPARE_GIB * settings.ranks
        needed += parameters * OFFLOAD_BYTES_PER_PARAMETER / GIB if settings.offloads_by_deepspeed else 0.0
        needed += 2 * weights_gib if settings.optimizer == "adamw_cpu" else 0.0
        return needed + (card_named(spec.card).memory_gib if settings.activation_offload else 0.0)
    return HOST_MEMORY_PER_RANK_GIB[spec.size] * settings.ranks


def checkpoints_gib(spec: RowSpec) -> float:
    """Return the maximum disk space of the row's checkpoints, GiB.

    Two checkpoints exist at once, because the old one is deleted only after the new one is complete. A parameter takes
    4 bytes for the weight and 8 bytes for Adam's moments. Checkpoints of adapters are small and not counted.
    """
    settings = spec.settings
    trains = settings.engine == "hf_trainer" and settings.task == "train" and not settings.lora
    count = 2 if trains and (spec.size, spec.length) == ("full", "as-taught") else 0
    return count * spec.base_model.parameters * CHECKPOINT_BYTES_PER_PARAMETER / GIB


def check_disk(folder: Path, specs: Sequence[RowSpec], is_local: bool = True) -> None:
    """Raise InputError if the disk of ``folder`` does not have enough space for the results of the rows.

    The folder need not exist yet. is_local: whether the rows run on this machine, which then also stores checkpoints.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    needed_gib = SPARE_DISK_GIB + len(specs) * DISK_PER_ROW_GIB
    if is_local:
        needed_gib += max(map(checkpoints_gib, specs), default=0.0)
    if (free_gib := shutil.disk_usage(existing).free / GIB) < needed_gib:
        raise InputError(
            f"{folder}: not enough disk space: {free_gib:.2f} GiB are free, {needed_gib:.2f} GiB are needed; "
            "free some space or choose another --results"
        )
