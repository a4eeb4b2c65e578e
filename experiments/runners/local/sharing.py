"""Decide which rows may share a GPU, and how many at a time. Each row has the memory limit of its card."""

from collections.abc import Mapping, Sequence
from math import ceil

from experiments.errors import InputError
from experiments.results.obstacles import evaluated_quantities
from experiments.results.wording import format_size, quantity_label
from experiments.suites.cards import card_named, card_of_device
from experiments.suites.row_spec import RowSpec
from experiments.suites.suite import Suite
from provision.models import Gpu, Node

FLAG = "--share-gpus"
OUTSIDE_LIMIT_GIB = 1.0
"""Memory of a row that its limit does not count: the CUDA context, and what libraries allocate on their own. In the
stored runs on an H200 it was 0.6 to 0.9 GiB."""


def max_row_gib(card: str) -> float:
    """Return the most GPU memory that a row for ``card`` uses under its limit, GiB."""
    return card_named(card).usable_gib + OUTSIDE_LIMIT_GIB


def shared_rows_per_gpu(specs: Sequence[RowSpec], suite: Suite, node: Node, used_gib: Mapping[int, float]) -> int:
    """Return how many rows may use each GPU of ``node`` at the same time.

    specs: rows for one card. used_gib: memory that other programs use, by index of the GPU. Each row counts with the
    most memory that it may use, because a row that runs out of memory reaches its limit. Each row needs a CPU core.
    Raises InputError if a row must not share a GPU, or if a GPU lacks the memory or the cores for two rows.
    """
    if not node.gpus:
        raise InputError(f"{FLAG}: this machine has no GPU; omit {FLAG}: without GPUs, rows always share the cores")
    card, gpu_count = specs[0].card, len(node.gpus)
    needed_gib = max_row_gib(card)
    for gpu in node.gpus:
        _require_emulation(gpu, card)
    _require_shareable(specs, suite, node.gpus)
    for gpu in node.gpus:
        free_gib = gpu.memory_gib - used_gib[gpu.index]
        if free_gib < 2 * needed_gib:
            raise InputError(
                f"{FLAG}: GPU {gpu.index} ({gpu.name}) has {format_size(free_gib)} free, but two rows for {card} need"
                f" {format_size(2 * needed_gib)}; allowed: a GPU with that much free memory, a smaller --card, or no"
                f" {FLAG}"
            )
    if node.cpus < 2 * gpu_count:
        raise InputError(f"{FLAG}: {node.cpus} cores for {gpu_count} GPUs; allowed: two cores for each GPU, or more")
    fit = min(int((gpu.memory_gib - used_gib[gpu.index]) / needed_gib) for gpu in node.gpus)
    return min(fit, node.cpus // gpu_count, ceil(len(specs) / gpu_count))


def _require_shareable(specs: Sequence[RowSpec], suite: Suite, gpus: Sequence[Gpu]) -> None:
    """Raise InputError if a row must not share a GPU. The message names these rows and the allowed ones."""
    reasons = {spec.row: _whole_gpu_reason(spec, suite, gpus) for spec in specs}
    rejected: dict[str, list[str]] = {}
    for row, reason in reasons.items():
        if reason:
            rejected.setdefault(reason, []).append(row)
    if not rejected:
        return
    why = "; ".join(f"{', '.join(rows)}: {reason}" for reason, rows in rejected.items())
    others = "".join(f" --row {row}" for row, reason in reasons.items() if not reason)
    raise InputError(f"{FLAG}: {why}; allowed:{f'{others}, or' if others else ''} run these rows without {FLAG}")


def _require_emulation(gpu: Gpu, card: str) -> None:
    """Raise InputError if the GPU has no more memory than ``card``, because then a row for the card uses all of it."""
    if card_of_device(gpu.name, gpu.memory_gib) == card or card_named(card).device_has_same_memory(gpu.memory_gib):
        raise InputError(
            f"{FLAG}: GPU {gpu.index} ({gpu.name}) has the memory of {card}, and a row for {card} uses all of it;"
            f" allowed: a larger GPU, which emulates the card, or no {FLAG}"
        )


def _whole_gpu_reason(spec: RowSpec, suite: Suite, gpus: Sequence[Gpu]) -> str:
    """Return why the row must have a whole GPU, or uses none; "" if it may share one."""
    if spec.size == "tiny":
        return "tiny models have no memory limit"
    if spec.settings.gpus != 1:
        return f"needs {spec.settings.gpus} GPUs, not one" if spec.settings.gpus else "runs on the CPU"
    devices = dict.fromkeys(card_of_device(gpu.name, gpu.memory_gib) for gpu in gpus)
    names = [name for device in devices for name in evaluated_quantities(suite, spec.row, device, spec.card)]
    measured = " and ".join(quantity_label(name) for name in dict.fromkeys(names))
    return f"other rows would disturb {measured}, on which statements are evaluated" if measured else ""
