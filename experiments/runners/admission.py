"""What is refused before it starts: rows that the machine cannot run, and runs that cannot be made at all."""

import shutil
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from experiments.errors import InputError
from experiments.results.provenance import versions
from experiments.suites.cards import card_named, card_of_device
from experiments.suites.row_spec import RowSpec
from experiments.suites.settings import Settings
from experiments.system.files import GIB
from provision.models import Gpu, Node

ROW_GIB = 0.05
SPARE_GIB = 1.0
HOST_GIB = {"full": 8.0, "tiny": 1.5}
OFFLOAD_BYTES_PER_PARAMETER = 20
OFFLOAD_SPARE_GIB = 10.0
CHECKPOINT_BYTES_PER_PARAMETER = 12
BITSANDBYTES = (0, 50)
"""Has kernels for processors, as pyproject.toml asks; the material's 0.44 has those for GPUs alone."""


def refusal(spec: RowSpec, node: Node, host_memory_gib: float, here: bool = True, nodes: int = 1) -> str:
    """Why ``node``, or ``nodes`` like it, cannot run the row, in one plain line; empty when it can.

    here: it is this machine.
    """
    settings = spec.settings
    if here and settings.optimizer == "deepspeed_cpu" and (missing := missing_to_compile()):
        return f"DeepSpeed compiles its Adam for the processor at first use and finds no {missing}"
    if here and not node.gpus and (why := _gpu_alone(settings)):
        return why
    if not node.gpus:
        return "no GPU: full size needs one; size tiny runs anywhere" if spec.size == "full" else ""
    needed_gpus = settings.world_size // (spread := settings.nodes_of(nodes))
    if needed_gpus > len(node.gpus):
        there = f"there {'is' if len(node.gpus) == 1 else 'are'} {len(node.gpus)}"
        of_each = f" of each of {spread} nodes" if spread > 1 else ""
        return f"{needed_gpus} GPUs{of_each} are needed, {there}; --gpus-per-node runs the row on fewer"
    if spec.size == "tiny":
        return ""
    for gpu in node.gpus:
        if why := too_small(gpu, spec.card):
            return why
    needed = host_need_gib(spec)
    if offloads(spec) and needed > host_memory_gib:
        return f"optimizer offload needs {needed:.0f} GiB of host memory, there are {host_memory_gib:.0f} GiB"
    return ""


def _gpu_alone(settings: Settings) -> str:
    """Why the bitsandbytes of this environment cannot run the row on a processor; empty when it can."""
    there = versions().get("bitsandbytes")
    if there is None or not (settings.quantization or settings.optimizer == "adam_8bit"):
        return ""
    if tuple(map(int, there.split(".")[:2])) >= BITSANDBYTES:
        return ""
    return f"bitsandbytes {there} needs a GPU; {'.'.join(map(str, BITSANDBYTES))} and newer run on processors too"


def missing_to_compile() -> str:
    """What compiling an extension in C++ needs and this machine lacks, with its package; empty: nothing."""
    if not shutil.which("c++"):
        return "C++ compiler (package g++)"
    return "" if Path(sysconfig.get_path("include"), "Python.h").exists() else "Python.h (package python3-dev)"


def too_small(gpu: Gpu, card_name: str) -> str:
    """Why ``gpu`` can be neither the card nor a stand-in for it; empty when it can."""
    card = card_named(card_name)
    if card_of_device(gpu.name) == card_name or gpu.memory_gib >= card.memory_gib:
        return ""
    return f"device {gpu.name} has {gpu.memory_gib:.1f} GiB, {card_name} needs {card.memory_gib:.1f} GiB"


def offloads(spec: RowSpec) -> bool:
    """True when the row keeps its optimizer in host memory."""
    return spec.settings.optimizer == "deepspeed_cpu" or "offload" in spec.settings.strategy


def host_need_gib(spec: RowSpec) -> float:
    """Host memory that the row is given room for, GiB.

    An offloaded parameter takes 4 bytes of master weight, 8 of Adam's moments, 4 of gradient, 2 of the gradient that
    accumulates and 2 of the updated weight on its way back (DeepSpeed's stage_1_and_2.py; 12.2e9 measured: 231 GiB).
    """
    if spec.size == "full" and offloads(spec):
        shared = spec.base_model.parameters * OFFLOAD_BYTES_PER_PARAMETER / GIB
        return shared + OFFLOAD_SPARE_GIB * spec.settings.ranks
    return HOST_GIB[spec.size] * spec.settings.ranks


def checkpoints_gib(spec: RowSpec) -> float:
    """Most that the row's checkpoints take on the disk: two, since one goes when the next is there.

    Each has 4 bytes of weight and 8 of Adam's moments of a parameter; those of adapters are small.
    """
    settings = spec.settings
    trains = settings.engine == "hf_trainer" and settings.task == "train" and not settings.lora
    kept = 2 if trains and (spec.size, spec.length) == ("full", "as-taught") else 0
    return kept * spec.base_model.parameters * CHECKPOINT_BYTES_PER_PARAMETER / GIB


def check_disk(folder: Path, specs: Sequence[RowSpec], here: bool = True) -> None:
    """InputError when the disk that ``folder`` is on, or will be, has no room for what the rows leave there.

    here: they run on this machine, which then has the checkpoints of the largest, too.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    needed_gib = SPARE_GIB + len(specs) * ROW_GIB
    if here:
        needed_gib += max(map(checkpoints_gib, specs), default=0.0)
    if (free_gib := shutil.disk_usage(there).free / GIB) < needed_gib:
        raise InputError(
            f"{folder}: no disk space: {free_gib:.2f} GiB are free, {needed_gib:.2f} GiB are needed; "
            "make room or give another --results"
        )
