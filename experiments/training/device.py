"""The device that a row runs on, and the limits that let a larger card stand in for a smaller one."""

import os
import shutil
import subprocess
from typing import Any

import psutil
import pynvml
import torch

from experiments.errors import InputError
from experiments.results.schema import Device
from experiments.suites.attention_kernels import Kernels, kernels_of
from experiments.suites.cards import Card, card_named, card_of_device
from experiments.suites.choices import Precision
from experiments.suites.row_spec import RowSpec
from experiments.suites.settings import Settings
from experiments.system.files import GIB
from provision.hardware import amd

SAME_CARD = 0.02


def open_device(spec: RowSpec) -> Device:
    """The device of this process, its allocator capped to the row's card before anything is on it.

    A processor gives each row
    one thread: rows run side by side, and the times of a miniature are not evaluated.
    Raises InputError when the device has less memory than the card.
    """
    host: dict[str, Any] = {"host_cpus": os.cpu_count() or 1, "host_memory_gib": psutil.virtual_memory().total / GIB}
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
        return Device(kind="cpu", name=processor_name(), **host)
    torch.cuda.set_device(own_gpus(spec.settings)[0])
    facts = torch.cuda.get_device_properties(torch.cuda.current_device())
    total = facts.total_memory / GIB
    return Device(
        kind="cuda",
        name=facts.name,
        count=spec.settings.devices,
        memory_gib=total,
        card=card_of_device(facts.name),
        cap_gib=_cap(spec, total),
        driver=_driver(),
        cuda=f"ROCm {torch.version.hip}" if torch.version.hip else torch.version.cuda,
        compute_capability=_architecture(facts),
        topology=_topology(),
        **host,
    )


def own_gpus(settings: Settings) -> range:
    """Numbers of this process's GPUs on its host: its own (torchrun's LOCAL_RANK), or those of a row of one process."""
    rank = int(os.environ.get("LOCAL_RANK", 0))
    return range(rank, rank + 1) if settings.ranks > 1 else range(settings.devices)


def cap_gib(card: Card, total_gib: float) -> float | None:
    """What the allocator may take on a device of ``total_gib`` so that it is like ``card``; None: no cap is needed.

    Raises InputError when the device is smaller than the card.
    """
    if abs(total_gib - card.memory_gib) <= SAME_CARD * card.memory_gib:
        return None
    if total_gib < card.memory_gib:
        raise InputError(f"the device has {total_gib:.1f} GiB, {card.name} needs {card.memory_gib:.1f}")
    return card.usable_gib


def _cap(spec: RowSpec, total_gib: float) -> float | None:
    if spec.size == "tiny":
        return None
    cap = cap_gib(card_named(spec.card), total_gib)
    if cap is not None:
        for gpu in own_gpus(spec.settings):
            torch.cuda.set_per_process_memory_fraction(cap / total_gib, gpu)
        _match_attention_kernels(kernels_of(card_named(spec.card)), spec.settings.precision)
    return cap


def _match_attention_kernels(kernels: Kernels, precision: Precision) -> None:
    """Leave PyTorch the attention kernels alone that the card has: those that it lacks take less memory."""
    torch.backends.cuda.enable_flash_sdp(kernels.flash)
    torch.backends.cuda.enable_mem_efficient_sdp(kernels.bfloat_efficient or precision == "32-true")
    torch.backends.cuda.enable_cudnn_sdp(kernels.cudnn)


def processor_name() -> str:
    """The processor's model as the kernel names it."""
    with open("/proc/cpuinfo") as lines:
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "processor"


def _architecture(facts: Any) -> str:
    """As cards.yaml has it: 8.0, or gfx90a."""
    return str(facts.gcnArchName).partition(":")[0] if torch.version.hip else f"{facts.major}.{facts.minor}"


def _driver() -> str:
    if torch.version.hip:
        return amd.driver()
    pynvml.nvmlInit()
    try:
        return str(pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()


def _topology() -> str | None:
    """The links between GPUs as nvidia-smi draws them, or None without nvidia-smi."""
    if not shutil.which("nvidia-smi"):
        return None
    drawn = subprocess.run(["nvidia-smi", "topo", "-m"], capture_output=True, text=True)
    return drawn.stdout.strip() or None
