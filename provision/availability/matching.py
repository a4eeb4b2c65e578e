"""Which hosts have what is wanted: by what the site reports of each, never by a list of names."""

import re
from collections import defaultdict
from collections.abc import Sequence

from provision.errors import NoSuchHost, nearest
from provision.models import Host, Requirements


def hardware(host: Host) -> str:
    """A host's type, site and GPUs in words; the same for hosts that are alike."""
    gpus = f"{host.gpus} x {host.gpu_model} {host.gpu_memory_gib:g} GiB {host.interconnect}".rstrip()
    return f"{host.node_type} at {host.site} with {gpus if host.gpus else 'no GPU'}"


def fitting(hosts: Sequence[Host], requirements: Requirements) -> list[Host]:
    """Return the hosts that meet ``requirements``; raise NoSuchHost, with the nearest matches, if none does."""
    named = _named(_named(hosts, "node_type", "node type", requirements.node_type), "name", "node", requirements.node)
    models = {host.gpu_model for host in hosts if host.gpu_model}
    if requirements.gpu_model and not any(_says(model, requirements.gpu_model) for model in models):
        raise NoSuchHost(f"unknown GPU {requirements.gpu_model!r}; nearest: {nearest(requirements.gpu_model, models)}")
    chosen = [host for host in named if _has(host, requirements)]
    if not chosen:
        there = "; ".join(sorted({hardware(host) for host in named}))
        raise NoSuchHost(f"no node has {_wanted(requirements)}; there are: {there}")
    return chosen


def alike(hosts: Sequence[Host], count: int) -> list[list[Host]]:
    """``hosts`` in groups that are alike in type, site and GPUs and have ``count`` or more, each in the order of names.

    NoSuchHost when no group is that large.
    """
    groups = defaultdict(list)
    for host in sorted(hosts, key=lambda host: host.name):
        groups[hardware(host)].append(host)
    largest = max(groups, key=lambda group: len(groups[group]))
    if not 1 <= count <= len(groups[largest]):
        raise NoSuchHost(f"{count} nodes alike are wanted; allowed: 1 to {len(groups[largest])} ({largest})")
    return [group for group in groups.values() if len(group) >= count]


def _named(hosts: Sequence[Host], field: str, what: str, name: str | None) -> Sequence[Host]:
    """The hosts whose ``field`` is ``name`` (None: all)."""
    if name is None:
        return hosts
    named = [host for host in hosts if getattr(host, field) == name]
    if not named:
        raise NoSuchHost(f"unknown {what} {name!r}; nearest: {nearest(name, {getattr(host, field) for host in hosts})}")
    return named


def _has(host: Host, requirements: Requirements) -> bool:
    return (
        host.gpus >= requirements.gpus
        and host.gpu_memory_gib >= requirements.gpu_memory_gib
        and _says(host.gpu_model, requirements.gpu_model)
        and _says(host.interconnect, requirements.interconnect)
    )


def _says(text: str, wanted: str) -> bool:
    """Whether ``text`` has every word of ``wanted``: A100 is in "NVIDIA A100-PCIE-40GB", A10 is not."""
    has, wants = (set(re.findall(r"[^\W_]+", words.casefold())) for words in (text, wanted))
    return wants <= has


def _wanted(requirements: Requirements) -> str:
    memory = f"of at least {requirements.gpu_memory_gib:g} GiB" if requirements.gpu_memory_gib else ""
    words = (
        "at least",
        str(requirements.gpus),
        requirements.gpu_model,
        "GPU" if requirements.gpus == 1 else "GPUs",
        memory,
        requirements.interconnect,
    )
    return " ".join(filter(None, words))
