"""Replace the memory statistics of torch.cuda and torch.accelerator with those of the phantom device."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from experiments.prediction.phantom.library import Phantom


def replace_memory_functions(phantom: Phantom, total_bytes: int) -> None:
    """Make torch.cuda, torch.cuda.memory and torch.accelerator report the memory of the phantom device.

    total_bytes: reported as total and as free memory of the card.
    """
    stats = phantom.stats

    def reset(device: Any = None) -> None:
        phantom.reset_peaks()

    functions: dict[str, Callable[..., Any]] = {
        "memory_allocated": lambda device=None: stats()[0],
        "memory_reserved": lambda device=None: stats()[1],
        "max_memory_allocated": lambda device=None: stats()[2],
        "max_memory_reserved": lambda device=None: stats()[3],
        "memory_stats": lambda device=None: _memory_stats(phantom),
        "reset_peak_memory_stats": reset,
        "empty_cache": lambda *_: phantom.empty_cache(),
    }
    cuda_functions: dict[str, Callable[..., Any]] = {
        **functions,
        "mem_get_info": lambda device=None: (total_bytes, total_bytes),
        "reset_accumulated_memory_stats": lambda device=None: None,
        "reset_max_memory_allocated": reset,
        "reset_max_memory_cached": reset,
        "set_per_process_memory_fraction": lambda fraction, device=None: None,
        "get_per_process_memory_fraction": lambda device=None: 1.0,
        "memory_snapshot": lambda mempool_id=None: [],
        "utilization": lambda device=None: 0,
        "memory_usage": lambda device=None: 0,
    }
    recorder: dict[str, Callable[..., Any]] = {
        "_record_memory_history": lambda *_, **__: None,
        "_snapshot": lambda device=None: {"segments": [], "device_traces": []},
        "_dump_snapshot": lambda *_, **__: None,
    }
    for owner, replacements in (
        (torch.cuda, cuda_functions),
        (torch.cuda.memory, cuda_functions | recorder),
        (torch.accelerator, functions | {"get_memory_info": lambda device=None: (total_bytes, total_bytes)}),
    ):
        for name, replacement in replacements.items():
            setattr(owner, name, replacement)


def _memory_stats(phantom: Phantom) -> dict[str, int]:
    """Return torch's statistics of the allocator, in bytes; those that the phantom device does not count are 0."""
    allocated, reserved, allocated_peak, reserved_peak, _ = phantom.stats()
    statistics: dict[str, int] = defaultdict(int, num_ooms=0, num_alloc_retries=0)
    for name, current, peak in (
        ("allocated_bytes", allocated, allocated_peak),
        ("active_bytes", allocated, allocated_peak),
        ("requested_bytes", allocated, allocated_peak),
        ("reserved_bytes", reserved, reserved_peak),
    ):
        statistics |= {f"{name}.all.current": current, f"{name}.all.peak": peak}
    return statistics
