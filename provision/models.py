"""Data classes for machines, reservations, requirements, and resources at a site. Times are timezone-aware, in UTC."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

GIB = 1024**3
"""Bytes of a GiB."""
TAG = re.compile(r"llm-testbed-[0-9a-f]{12}")
"""The format of tags. At the site, every resource of a lease has the tag of the lease."""


@dataclass(frozen=True)
class Gpu:
    """One GPU as its driver reports it. memory_gib: memory that programs can use, GiB (bytes / 1024**3)."""

    index: int
    name: str
    memory_gib: float
    uuid: str


@dataclass(frozen=True)
class Node:
    """One machine. description: its hardware in words, without name and address, so that it can be published."""

    description: str
    gpus: tuple[Gpu, ...]
    cpus: int
    host_memory_gib: float
    processor: str


def build_node(gpus: Sequence[Gpu], cpus: int, memory_gib: float, processor: str) -> Node:
    """Return a node with a description of its processor, memory (GiB) and GPUs. cpus: number of usable cores."""
    names = sorted({gpu.name for gpu in gpus})
    counted = ", ".join(f"{sum(gpu.name == name for gpu in gpus)} x {name}" for name in names)
    parts = [f"{cpus} cores of {processor}", f"{memory_gib:.0f} GiB of memory", counted or "no GPU"]
    return Node(", ".join(parts), tuple(gpus), cpus, memory_gib, processor)


@dataclass(frozen=True)
class Host:
    """A reservable machine as its site describes it.

    At a site of virtual machines, a host is the capacity for one virtual machine of a flavor (machine type) on a
    hypervisor. Then ``is_flavor`` is True, and node_type is the flavor's name.

    Ids are unique within a site. gpu_model and interconnect have the site's spelling, '' if not reported.
    gpu_memory_gib: the memory of one GPU. su_per_hour: price in service units (Chameleon's unit of cost) per hour; None
    if the site does not report a price.
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
    is_flavor: bool = False


@dataclass(frozen=True)
class Booking:
    """A reservation of a host, by any user, from start until end."""

    host_id: str
    start: datetime
    end: datetime


@dataclass(frozen=True)
class HostBooking:
    """A reservation as in Booking, with the host itself in place of its id."""

    host: Host
    start: datetime
    end: datetime


@dataclass(frozen=True)
class DailyWindow:
    """A daily window in a zone's local time: its begin and end in minutes after midnight.

    If the end is not after the begin, the window ends on the next day.
    """

    begin_minute: int
    end_minute: int
    zone: ZoneInfo


@dataclass(frozen=True)
class Requirements:
    """Requirements on the hosts of a lease and on its time.

    A host matches if its type is node_type and its name is ``node`` (None: any), if its GPU model and interconnect
    contain all the given words ('': any), and if it has at least ``gpus`` GPUs with gpu_memory_gib each. With
    host_count > 1, that many hosts of the same site, type and GPUs must be free at the same time.

    The time slot is ``length`` long and lies within ``hours``. The slot begins exactly at ``start``. Without ``start``,
    it begins as early as possible, but not before ``not_before``.
    """

    length: timedelta
    node_type: str | None = None
    node: str | None = None
    gpu_model: str = ""
    gpu_memory_gib: float = 0.0
    gpus: int = 1
    interconnect: str = ""
    host_count: int = 1
    start: datetime | None = None
    not_before: datetime | None = None
    hours: DailyWindow | None = None


@dataclass(frozen=True)
class TimeSlot:
    """Hosts that are all free from start until end. cost_su: service units for all of them, None if unknown."""

    hosts: tuple[Host, ...]
    start: datetime
    end: datetime
    cost_su: float | None


@dataclass(frozen=True)
class Identity:
    """The user and project of an account: names for messages, ids for comparison, never a secret.

    endpoint: URL of keystone, OpenStack's service for logins. entry: the account's name in clouds.yaml; ``envvars`` for
    the account of the OS_* variables.
    """

    user: str
    user_id: str
    project: str
    project_id: str
    endpoint: str
    region: str
    entry: str = ""

    def __str__(self) -> str:
        return f"{self.user} in project {self.project} at {self.region}"

    def is_same_as(self, other: "Identity") -> bool:
        """Return whether this identity and ``other`` are the same user in the same project of the same region."""
        return self._comparison_key() == other._comparison_key()

    def _comparison_key(self) -> tuple[str | None, ...]:
        return self.user_id, self.project_id, self.region, urlsplit(self.endpoint).hostname


@dataclass(frozen=True)
class Credential:
    """What the account's credential allows, and for how long.

    restricted: whether it is an application credential that is not allowed to create leases. expires_at: None if the
    credential never expires, or if the site does not report the time.
    """

    restricted: bool = False
    expires_at: datetime | None = None


@dataclass(frozen=True)
class LeaseCredential:
    """An application credential that may only read and delete one lease.

    auth_url: keystone's URL. lease_url: URL of the lease at Blazar, OpenStack's service for reservations.
    """

    id: str
    secret: str = field(repr=False)
    auth_url: str
    lease_url: str


@dataclass(frozen=True)
class Lease:
    """A reservation at a site.

    status: as the site reports it. reservation_ids: one for each server. hosts: ids of the reserved hosts in the same
    order, as far as the site reports them. created: the time of the lease's creation, in the site's format. fault: the
    site's reason for status ERROR, '' without a reason. tag and owner: see Resource.
    """

    id: str
    name: str
    status: str
    start: datetime
    end: datetime
    reservation_ids: tuple[str, ...]
    hosts: tuple[str, ...] = ()
    tag: str = ""
    created: str = ""
    owner: str = ""
    fault: str = ""


@dataclass(frozen=True)
class Server:
    """A server at a site.

    fault: the site's reason for status ERROR. task: the operation that the site is performing on the server, or ''.
    image_id: UUID of the disk image, '' if the server boots from a volume. tag and owner: see Resource.
    """

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
    """A floating IP of the project. server: id of the server that has the floating IP, '' if no server has it."""

    id: str
    ip: str
    server: str = ""
    tag: str = ""
    owner: str = ""


@dataclass(frozen=True)
class Volume:
    """A boot volume, named after its server. status: as the site reports it."""

    id: str
    name: str
    status: str
    tag: str = ""
    owner: str = ""


@dataclass(frozen=True)
class TaggedResource:
    """An SSH key, security group or credential that is named by a tag.

    complete: False if the program was killed while creating it.
    """

    id: str
    kind: str
    tag: str
    owner: str = ""
    complete: bool = True


class Resource(Protocol):
    """A resource at a site that can have a lease's tag.

    tag: the tag, '' for a resource of somebody else. owner: id of the user who created it, '' if neither the site nor
    the resource's description has it.
    """

    @property
    def id(self) -> str: ...

    @property
    def tag(self) -> str: ...

    @property
    def owner(self) -> str: ...
