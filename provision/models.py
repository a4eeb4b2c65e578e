"""Machines, their calendars and what is wanted of them, as frozen data. Times are aware and in UTC."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol
from zoneinfo import ZoneInfo

GIB = 1024**3
"""Bytes of a GiB."""
TAG = re.compile(r"llm-testbed-[0-9a-f]{12}")
"""The tag that every resource of a lease carries at its site."""


@dataclass(frozen=True)
class Gpu:
    """One GPU as its driver describes it. memory_gib is what programs may have of it, in GiB (bytes / 1024**3)."""

    index: int
    name: str
    memory_gib: float
    uuid: str


@dataclass(frozen=True)
class Node:
    """One machine. ``description`` contains neither its name nor its address; memory is in GiB."""

    description: str
    gpus: tuple[Gpu, ...]
    cpus: int
    host_memory_gib: float
    processor: str


def described(gpus: Sequence[Gpu], cpus: int, memory_gib: float, processor: str) -> Node:
    """Return a node with the description that its parts give."""
    names = sorted({gpu.name for gpu in gpus})
    counted = ", ".join(f"{sum(gpu.name == name for gpu in gpus)} x {name}" for name in names)
    parts = [f"{cpus} cores of {processor}", f"{memory_gib:.0f} GiB of memory", counted or "no GPU"]
    return Node(", ".join(parts), tuple(gpus), cpus, memory_gib, processor)


@dataclass(frozen=True)
class Host:
    """One machine that a site lets people reserve, as the site describes it; of a KVM flavor, one of its places.

    No two hosts of a site share an id. node_type is the flavor's name where flavor is set. gpu_model and
    interconnect are the site's own words, '' where it has none; gpu_memory_gib is that of one GPU. su_per_hour: service
    units that an hour costs, None where the site does not tell.
    """

    id: str
    name: str
    site: str
    node_type: str
    gpu_model: str = ""
    gpus: int = 0
    gpu_memory_gib: float = 0.0
    interconnect: str = ""
    su_per_hour: float | None = None
    flavor: bool = False


@dataclass(frozen=True)
class Booking:
    """A host that somebody has reserved from start until end."""

    host_id: str
    start: datetime
    end: datetime


@dataclass(frozen=True)
class Hours:
    """A part of the day by a zone's clocks: minutes after midnight; an end not after begin is the next day's."""

    begin: int
    end: int
    zone: ZoneInfo


@dataclass(frozen=True)
class Requirements:
    """What is wanted: hosts and a time.

    A host fits when it has the node_type and the name asked for (None: any), its GPU's model and its interconnect have
    all the words asked for ('': any), and it has at least that many GPUs with at least that memory each. With count > 1
    that many hosts, alike in site, type and GPUs, are wanted at the same time.

    The block is ``length`` long and lies within hours. With start it begins exactly then; without, it begins as early
    as it can, not before not_before.
    """

    length: timedelta
    node_type: str | None = None
    node: str | None = None
    gpu_model: str = ""
    gpu_memory_gib: float = 0.0
    gpus: int = 1
    interconnect: str = ""
    count: int = 1
    start: datetime | None = None
    not_before: datetime | None = None
    hours: Hours | None = None


@dataclass(frozen=True)
class TimeSlot:
    """Hosts that are free together from start until end. cost_su: service units for all of them, None if unknown."""

    hosts: tuple[Host, ...]
    start: datetime
    end: datetime
    cost_su: float | None


@dataclass(frozen=True)
class Lease:
    """A reservation at a site. hosts are ids; status is the site's word; mark is the run's, '' where there is none.

    resources are what its servers are asked for with, one each: the ids of its reservations. hosts are in their order,
    as far as the site tells of them. fault is what the site tells of status ERROR, '' where it tells nothing.
    owner: see Thing.
    """

    id: str
    name: str
    status: str
    start: datetime
    end: datetime
    resources: tuple[str, ...]
    hosts: tuple[str, ...] = ()
    tag: str = ""
    created: str = ""
    owner: str = ""
    fault: str = ""


@dataclass(frozen=True)
class Server:
    """A server at a site; fault is the site's reason for status ERROR, task what it does with it just now, or ''."""

    id: str
    name: str
    status: str
    tag: str = ""
    fault: str = ""
    image_id: str = ""
    owner: str = ""
    task: str = ""


@dataclass(frozen=True)
class Address:
    """A floating IP of the project. server is the id of the server it leads to, '' when it is free."""

    id: str
    ip: str
    server: str = ""
    tag: str = ""
    owner: str = ""


@dataclass(frozen=True)
class Volume:
    """A disk that a server boots from; it has the server's name. status is the site's word."""

    id: str
    name: str
    status: str
    tag: str = ""
    owner: str = ""


class Thing(Protocol):
    """Anything at a site that carries the mark of a run, or '' for none.

    owner: the id of the user who made it, '' where neither the site nor the mark's text tells.
    """

    @property
    def id(self) -> str: ...

    @property
    def tag(self) -> str: ...

    @property
    def owner(self) -> str: ...


@dataclass(frozen=True)
class TaggedResource:
    """Anything else that carries a mark: an SSH key at the site, a security group. Half-made, it is not whole."""

    id: str
    kind: str
    tag: str
    owner: str = ""
    whole: bool = True
