"""Open the device of a row, with limits that make a larger GPU emulate a smaller card."""

import os
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import psutil
import torch

from experiments.errors import InputError
from experiments.results.schema import SHARED_GPU_VARIABLE, Device
from experiments.suites.attention_kernels import KernelProperties, kernel_properties
from experiments.suites.cards import Card, card_named, card_of_device
from experiments.suites.choices import Precision
from experiments.suites.row_spec import RowSpec
from experiments.suites.settings import Settings
from experiments.system.files import GIB
from provision.hardware import gpus
from provision.hardware.local import processor_name

C_COMPILERS = ("gcc", "clang")
"""Programs that Triton looks for if the environment variable CC is not set (triton.runtime.build)."""


def open_device(spec: RowSpec) -> Device:
    """Limit this process's memory on its GPU to the memory of the row's card; return a description of the device.

    Call this function before any allocation. On a CPU, a row with a tiny model gets one thread, because rows run in
    parallel and times of tiny models are not evaluated. Raises InputError if the device has less memory than the card,
    or if the row is compiled and the machine has no C compiler.
    """
    host: dict[str, Any] = {"host_cpus": os.cpu_count() or 1, "host_memory_gib": psutil.virtual_memory().total / GIB}
    if not (spec.settings.gpus and torch.cuda.is_available()):
        if spec.size == "tiny":
            torch.set_num_threads(1)
        return Device(kind="cpu", name=processor_name(), **host)
    if spec.settings.compile:
        require_c_compiler()
    torch.cuda.set_device(process_gpus(spec.settings)[0])
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    total_gib = properties.total_memory / GIB
    return Device(
        kind="cuda",
        name=properties.name,
        count=spec.settings.devices,
        memory_gib=total_gib,
        card=card_of_device(properties.name, total_gib),
        cap_gib=_emulate(spec, total_gib),
        shared=SHARED_GPU_VARIABLE in os.environ,
        driver=gpus.driver_version(),
        cuda=f"ROCm {torch.version.hip}" if torch.version.hip else torch.version.cuda,
        compute_capability=_gpu_architecture(properties),
        topology=gpus.topology(),
        **host,
    )


def require_c_compiler() -> None:
    """Raise InputError if there is no C compiler or no Python header, which Triton needs to start compiled kernels."""
    stated = os.environ.get("CC")
    if not any(shutil.which(one) for one in (stated.split()[:1] if stated else C_COMPILERS)):
        raise InputError(
            f"compile = True: found {f'no program CC={stated}' if stated else 'no C compiler'}, which Triton needs to"
            f" start the compiled kernels; allowed: {' or '.join(C_COMPILERS)} in PATH, or the environment variable CC"
        )
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        raise InputError(f"compile = True: {header} is missing, which Triton needs; install the headers of Python")


def process_gpus(settings: Settings) -> range:
    """Return the indices of the GPUs that this process uses.

    With several ranks, each process uses one GPU, whose index is LOCAL_RANK. Otherwise, the process uses all GPUs of
    the row.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    return range(local_rank, local_rank + 1) if settings.ranks > 1 else range(settings.devices)


def memory_cap_gib(card: Card, total_gib: float) -> float | None:
    """Return the allocator limit in GiB that makes a device of ``total_gib`` emulate ``card``; None if not needed.

    Raises InputError if the device is smaller than the card.
    """
    if card.device_has_same_memory(total_gib):
        return None
    if not card.device_is_large_enough(total_gib):
        raise InputError(f"the device has {total_gib:.1f} GiB, {card.name} needs {card.memory_gib:.1f} GiB")
    return card.usable_gib


def _emulate(spec: RowSpec, total_gib: float) -> float | None:
    """Make the device emulate the row's card: limit its memory and its attention kernels.

    Returns the memory limit in GiB; None for a tiny model, or if the device has as much memory as the card. A device
    with as much memory may be another GPU model, so its attention kernels are limited, too.
    """
    if spec.size == "tiny":
        return None
    card = card_named(spec.card)
    _match_attention_kernels(kernel_properties(card), spec.settings.precision)
    cap = memory_cap_gib(card, total_gib)
    if cap is not None:
        for gpu in process_gpus(spec.settings):
            torch.cuda.set_per_process_memory_fraction(cap / total_gib, gpu)
    return cap


def _match_attention_kernels(kernels: KernelProperties, precision: Precision) -> None:
    """Enable only the attention kernels that the card has. The other kernels would need less memory."""
    torch.backends.cuda.enable_flash_sdp(kernels.flash)
    memory_efficient = kernels.memory_efficient if precision == "32-true" else kernels.memory_efficient_bfloat16
    torch.backends.cuda.enable_mem_efficient_sdp(memory_efficient)
    torch.backends.cuda.enable_cudnn_sdp(kernels.cudnn_width > 0)


def _gpu_architecture(properties: Any) -> str:
    """Return the compute capability (such as 8.0) or for AMD the architecture (such as gfx90a), as in cards.yaml."""
    if torch.version.hip:
        return str(properties.gcnArchName).partition(":")[0]
    return f"{properties.major}.{properties.minor}"
