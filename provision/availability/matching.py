"""Select hosts by the hardware that their site reports, so that new hosts of a site need no change of the program."""

import re
from collections import defaultdict
from collections.abc import Sequence

from provision.errors import NoSuchHost, most_similar_names
from provision.models import Host, Requirements


def hardware_in_words(host: Host) -> str:
    """Return a host's type, site and GPUs in words. Hosts with equal hardware at one site have the same text."""
    memory = f"{host.gpu_memory_gib:g} GiB" if host.gpu_memory_gib else "of unknown memory"
    gpus = " ".join(filter(None, (f"{host.gpus} x", host.gpu_model, memory, host.interconnect)))
    return f"{host.node_type} at {host.site} with {gpus if host.gpus else 'no GPU'}"


def matching_hosts(hosts: Sequence[Host], requirements: Requirements) -> list[Host]:
    """Return the hosts that meet ``requirements``.

    Raises NoSuchHost if no host does, with the most similar names or with the available hardware.
    """
    of_type = _filter_by_name(hosts, "node_type", "node type", requirements.node_type)
    named = _filter_by_name(of_type, "name", "node", requirements.node)
    models = {host.gpu_model for host in hosts if host.gpu_model}
    if requirements.gpu_model and not any(_contains_words(model, requirements.gpu_model) for model in models):
        similar = most_similar_names(requirements.gpu_model, models)
        raise NoSuchHost(f"unknown GPU {requirements.gpu_model!r}; similar names: {similar}")
    chosen = [host for host in named if _has_hardware(host, requirements)]
    if not chosen:
        available = "; ".join(sorted({hardware_in_words(host) for host in named}))
        raise NoSuchHost(f"no node has {gpus_in_words(requirements)}; available: {available}")
    return chosen


def groups_of_equal_hosts(hosts: Sequence[Host], count: int) -> list[list[Host]]:
    """Group ``hosts`` by type, site and GPUs, sorted by name; drop groups of fewer than ``count``.

    Raises NoSuchHost if no group is large enough.
    """
    groups = defaultdict(list)
    for host in sorted(hosts, key=lambda host: host.name):
        groups[hardware_in_words(host)].append(host)
    largest = max(groups, key=lambda group: len(groups[group]))
    if not 1 <= count <= len(groups[largest]):
        raise NoSuchHost(f"{count} equal nodes are requested; allowed: 1 to {len(groups[largest])} ({largest})")
    return [group for group in groups.values() if len(group) >= count]


def _filter_by_name(hosts: Sequence[Host], field: str, label: str, name: str | None) -> Sequence[Host]:
    """Return the hosts whose ``field`` is ``name``; all hosts for None. label: the field in words, for a message."""
    if name is None:
        return hosts
    named = [host for host in hosts if getattr(host, field) == name]
    if not named:
        similar = most_similar_names(name, {getattr(host, field) for host in hosts})
        raise NoSuchHost(f"unknown {label} {name!r}; similar names: {similar}")
    return named


def _has_hardware(host: Host, requirements: Requirements) -> bool:
    return (
        host.gpus >= requirements.gpus
        and host.gpu_memory_gib >= requirements.gpu_memory_gib
        and _contains_words(host.gpu_model, requirements.gpu_model)
        and _contains_words(host.interconnect, requirements.interconnect)
    )


def _contains_words(text: str, words: str) -> bool:
    """Return whether ``text`` contains all ``words``: A100 is in "NVIDIA A100-PCIE-40GB", A10 is not."""
    present, required = (set(re.findall(r"[^\W_]+", part.casefold())) for part in (text, words))
    return required <= present


def gpus_in_words(requirements: Requirements) -> str:
    """Return the required GPUs of a node in words."""
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
