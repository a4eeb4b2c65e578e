"""Machines as frozen data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One GPU as its driver describes it. memory_gib is what programs may have of it, in GiB (bytes / 1024**3)."""

    index: int
    name: str
    memory_gib: float
    uuid: str


@dataclass(frozen=True)
class Node:
    """One machine. description says what it is in words, without names or addresses; memory in GiB."""

    description: str
    gpus: tuple[Gpu, ...]
    cpus: int
    host_memory_gib: float
    processor: str
