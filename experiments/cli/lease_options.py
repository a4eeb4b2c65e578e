"""Options of a lease request, and functions that the commands for leases share.

The journal is the file that records every operation at a site. It shows which leases are active.
"""
# ruff: noqa: RUF009 (the fields are declared by a function that returns dataclasses.field)

import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from zoneinfo import ZoneInfo

import typer

from experiments.cli.output import say
from experiments.cli.parsing.values import parse_time_option
from experiments.errors import InputError
from experiments.suites.choices import GroupOption
from experiments.system.options import option
from provision.errors import BadName

if TYPE_CHECKING:
    from provision.leasing.journal import ActiveLease
    from provision.leasing.reconciler import Reconciler
    from provision.leasing.request import LeaseRequest
    from provision.models import Host, Requirements
    from provision.sites.base import LeasingSite
    from provision.ssh.login import KeyPair

LEASE_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,54}")
"""A name has at most 55 characters: Blazar, OpenStack's reservation service, stores 80 for the name and its tag."""
NOW = "now"
ANY_SITE = "any"
DEFAULT_GPU, DEFAULT_GPU_MEMORY_GIB = "A100", 80


@dataclass(frozen=True)
class LeaseOptions:
    """Hardware and time of a lease request."""

    for_: GroupOption = option(
        "both", "Labs that the lease is for; sets the lease's default name, length and number of GPUs.", flag="--for"
    )
    node_type: str | None = option(None, "Node type or flavor, such as gpu_a100_pcie.")
    node: str | None = option(None, "Name of one node.")
    gpu: str = option(
        "", "Words in the name of the GPU model, such as H100; default: A100, unless --node-type or --node is given."
    )
    gpu_memory: float = option(
        0.0, "Minimum memory of each GPU, in GiB; 0: 80 for the default GPU model, else any.", minimum=0
    )
    gpus: int | None = option(
        None,
        "Minimum number of GPUs per node; default: as many as the labs need, or 1 with --node-type or --node.",
        minimum=0,
    )
    interconnect: Literal["nvlink", "pcie"] | None = option(None, "Connection between the GPUs of a node.")
    count: int = option(1, "Number of nodes.", minimum=1)
    hours: str | None = option(
        None, "Length of the lease, such as 3 (hours) or 2h50m; default: as long as the labs need."
    )
    start: str | None = option(None, "Start: now, or a time with its zone; default: as early as possible.")
    time_of_day: str | None = option(None, "Hours of the day within which the lease must lie, such as 9-17.")
    zone: str | None = option(None, "Your time zone; default: this computer's.")

    @property
    def starts_now(self) -> bool:
        return self.start == NOW

    @property
    def time_zone(self) -> ZoneInfo:
        from provision.availability.times import local_zone, zone_named

        return parse_time_option("--zone", zone_named, self.zone) if self.zone else local_zone()

    def requirements(self) -> "Requirements":
        """Return the requirements of the lease. Raises BadTime for a length, time or time zone that cannot be read."""
        from provision.availability.times import parse_hours, parse_length, parse_time
        from provision.models import Requirements

        parse_daily_window, names_hardware = partial(parse_hours, zone=self.time_zone), self.node_type or self.node
        hours, gpus = _lease_hours_and_gpus(self.for_)
        return Requirements(
            length=parse_time_option("--hours", parse_length, self.hours or f"{hours}h"),
            node_type=self.node_type,
            node=self.node,
            gpu_model=self.gpu or ("" if names_hardware else DEFAULT_GPU),
            gpu_memory_gib=self.gpu_memory or (0 if names_hardware or self.gpu else DEFAULT_GPU_MEMORY_GIB),
            gpus=(1 if names_hardware else gpus) if self.gpus is None else self.gpus,
            interconnect=self.interconnect or "",
            host_count=self.count,
            start=parse_time_option("--start", parse_time, self.start) if self.start and not self.starts_now else None,
            hours=parse_time_option("--time-of-day", parse_daily_window, self.time_of_day)
            if self.time_of_day
            else None,
        )

    def request(self, site: "LeasingSite", name: str | None, key: Path, image: str | None = None) -> "LeaseRequest":
        """Return the request for a lease at ``site``.

        name: name of the lease. image: disk image of the nodes. For both, None selects the default. Raises BadName and
        BadKey.
        """
        from provision.ssh.login import key_pair

        user = re.sub(r"[^A-Za-z0-9_.-]", "_", site.user().partition("@")[0])
        return self.request_for_user(user, name, key_pair(key.expanduser()), image)

    def request_for_user(self, user: str, name: str | None, pair: "KeyPair", image: str | None) -> "LeaseRequest":
        """Return the lease request of ``user`` with the SSH key ``pair``.

        name: name of the lease; None: a name that contains the user's name. image: disk image of the nodes; None: the
        default.
        """
        from provision.leasing.request import LeaseRequest, default_image

        requirements = self.requirements()
        words = [word for word in ("" if self.for_ == "both" else self.for_, user) if word]
        return LeaseRequest(
            name or "_".join(("llm", *words)),
            "-".join(("node", "llm", *words)),
            requirements,
            pair,
            self.starts_now,
            image or default_image(self.node_type),
        )

    def check(self, name: str | None) -> None:
        """Check the options and the lease's name without connecting to a site. Raises BadTime or BadName."""
        self.requirements()
        if name is not None and not LEASE_NAME_PATTERN.fullmatch(name):
            raise BadName(f"--name {name!r}: allowed: at most 55 letters, digits, _ . -, a letter or digit first")


def _lease_hours_and_gpus(group: GroupOption) -> tuple[int, int]:
    """Return the hours of a lease for all labs of a group, and the number of its GPUs.

    The lease has as many GPUs as the lab that needs most. Its hours are the GPU-hours of all labs divided by this
    number, rounded up.
    """
    from experiments.suites.suite import suites_in_group

    leases = [suite.lease for suite in suites_in_group(group)]
    gpus = max(lease.gpus for lease in leases)
    return ceil(sum(lease.hours * lease.gpus for lease in leases) / gpus), gpus


class NotReadyToLease(InputError):
    """The SSH key cannot be used or the account is missing; the message says which.

    key_is_unusable: whether the SSH key cannot be used.
    """

    def __init__(self, text: str, key_is_unusable: bool) -> None:
        super().__init__(text)
        self.key_is_unusable = key_is_unusable


def connect_to_sites_if_ready(site: str, key: Path) -> "list[LeasingSite]":
    """Return the connection to the site, or for 'any' the connections to all sites.

    Raises NotReadyToLease if the SSH key cannot be used or an account is missing, or both.
    """
    from provision.errors import BadKey, NoCredentials
    from provision.sites.base import connect_to, connect_to_all
    from provision.ssh.login import check_key, key_pair

    missing: list[str] = []
    sites: list[LeasingSite] = []
    try:
        check_key(key_pair(key.expanduser()))
    except BadKey as problem:
        missing.append(str(problem))
    key_is_unusable = bool(missing)
    try:
        sites = connect_to_all() if site == ANY_SITE else [connect_to(site)]
    except NoCredentials as problem:
        missing.append(str(problem))
    if missing:
        doctor = "testbed doctor --site " + ("chameleon" if site == ANY_SITE else site)
        raise NotReadyToLease(f"{'; '.join(missing)}; all checks: {doctor}", key_is_unusable)
    return sites


def gpu_warnings(hosts: "Sequence[Host]") -> list[str]:
    """Return a warning for each node type whose GPUs are too old for PyTorch, or compute bfloat16 in software."""
    from experiments.suites.cards import card_of_device, card_warnings

    cards = {host.node_type: card_of_device(host.gpu_model, host.gpu_memory_gib) for host in hosts if host.gpus}
    return [f"warning: {kind}: {text}" for kind, card in cards.items() for text in card_warnings(card)]


def new_reconciler(site: str = "") -> "Reconciler":
    """Return a Reconciler: it performs operations at sites, records them in a journal, and prints progress on stderr.

    For the simulated site "demo", it has the journal of the demonstration and a clock that does not wait, and its lines
    begin with "demonstration". For every other site, it has the user's journal.
    """
    from provision.clock import Clock
    from provision.leasing import reconciler
    from provision.leasing.journal import Journal
    from provision.sites.base import is_demo

    if not is_demo(site):
        return reconciler.Reconciler(Journal(), Clock(), _printer_without_repeats())
    from provision.folders import demo_folder
    from provision.sites.demo import DemoClock

    show = _printer_without_repeats()
    show("demonstration: a simulated site; nothing is leased, booted or charged")
    clock = DemoClock(demo_folder())
    return reconciler.Reconciler(Journal(demo_folder(), clock.now), clock, lambda line: show(f"demonstration: {line}"))


def reconciler_of_lease(name: str | None) -> "Reconciler":
    """Return the Reconciler whose journal contains the active lease ``name``, or for None any active lease.

    If both journals contain one, or neither, the user's journal is used, not the journal of the demonstration.
    """
    from provision.choices import DEMO
    from provision.folders import demo_folder
    from provision.leasing.journal import Journal

    real_leases, demo_leases = Journal().active_leases(), Journal(demo_folder()).active_leases()
    if name is None:
        return new_reconciler(DEMO if demo_leases and not real_leases else "")
    return new_reconciler(DEMO if name in demo_leases and name not in real_leases else "")


def reject_missing_file(option: str, file: Path | None) -> None:
    """Raise InputError if the file of an option is given and does not exist."""
    if file and not file.expanduser().is_file():
        raise InputError(f"{option} {file}: no such file")


def key_for_site(site: str, key: Path) -> Path:
    """Return the path of the SSH key for the site: ``key``, or for the simulated site "demo" a key made for it."""
    from provision.sites.base import is_demo

    if not is_demo(site):
        return key.expanduser()
    from provision.sites.demo import demo_key

    return demo_key()


def _printer_without_repeats() -> Callable[[str], None]:
    """Return a function that prints a line on stderr, unless it is the same as the line before."""
    last = ""

    def show(line: str) -> None:
        nonlocal last
        if line != last:
            with suppress(OSError):
                say(line, stderr=True)
        last = line

    return show


def active_lease_named(reconciler: "Reconciler", name: str | None) -> "ActiveLease":
    """Return the active lease ``name``; without a name, the only active lease.

    Raises BadName if no lease matches, or if several are active and no name is given.
    """
    from provision.leasing import release

    active_leases = reconciler.journal.active_leases()
    if name is None and len(active_leases) == 1:
        return next(iter(active_leases.values()))
    if name is None and active_leases:
        raise BadName(f"NAME is required; active leases: {', '.join(sorted(active_leases))}")
    if name is None:
        raise BadName("no active lease; create one with `testbed lease`")
    return release.get_active_lease(reconciler, name)


def confirm(yes: bool, what: str, details: Callable[[], str] | None = None) -> None:
    """Ask for confirmation on the terminal, unless ``yes`` is True. Raises InputError if there is no terminal.

    what: the operation to confirm, such as 'release llm_ada'. details: function that returns further text for the
    question; called only if the question is asked.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise InputError(f"{what}: without a terminal for the confirmation, --yes is required")
    typer.confirm(f"{what}: {details()}" if details else what, abort=True, err=True)
