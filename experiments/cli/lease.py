"""`testbed slots | lease | status | extend | release | doctor`: machines of a testbed by command."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, is_dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

import typer
from rich.console import Console
from rich.table import Table

from experiments.errors import InputError
from experiments.system.processes import stop_as_interrupt
from provision.availability.calendar import calendar, slot_table
from provision.availability.matching import fitting
from provision.availability.times import local_zone, parse_hours, parse_length, parse_time, time_in_words, zone_named
from provision.errors import BadName, NoSuchHost
from provision.leasing import lease as leasing
from provision.leasing import release as releasing
from provision.leasing import reserve
from provision.leasing.journal import ActiveLease, Journal
from provision.leasing.reconciler import Clock, Reconciler
from provision.leasing.request import LeaseRequest, slot_in_words
from provision.models import Requirements, TimeSlot
from provision.sites.base import TESTBEDS, Testbed, connect_to, connect_to_all
from provision.ssh.login import KeyPair, key_pair

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,54}")
"""With a mark behind it, a name fills what Blazar keeps of it: 80 characters."""
LENGTHS = {"both": "3h", "single": "2h", "multi": "2h"}
GPUS = {"both": 4, "single": 1, "multi": 4}
FAILED = 3
NOW = "now"
ANY = "any"

app = typer.Typer()
Site = Annotated[str, typer.Option(help=f"Where: {', '.join(TESTBEDS)}, or a region, as CHI@TACC.")]
SiteOrAny = Annotated[
    str, typer.Option(help=f"Where: {', '.join(TESTBEDS)}, a region, or any: wherever there is an account for.")
]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout; everything else goes to stderr.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask; needed where there is no terminal.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be asked of which service; change nothing.")]
For = Annotated[
    Literal["both", "single", "multi"],
    typer.Option("--for", help="The labs: both in one block, or one of them; sets name, length and GPUs."),
]
NodeType = Annotated[str | None, typer.Option(help="A node type or flavor, as gpu_a100_pcie.")]
NodeName = Annotated[str | None, typer.Option("--node", help="One node by its name.")]
Gpu = Annotated[str, typer.Option(help="Words of the GPU's model, as A100.")]
GpuMemory = Annotated[float, typer.Option(min=0, help="Memory of one GPU in GiB, at least.")]
Gpus = Annotated[int | None, typer.Option(min=0, help="GPUs of a node, at least.")]
Interconnect = Annotated[str, typer.Option(help="nvlink or pcie.")]
Count = Annotated[int, typer.Option(min=1, help="Nodes.")]
Hours = Annotated[str | None, typer.Option(help="Length: 3, 2h50m.")]
Start = Annotated[str | None, typer.Option(help="now, or a time with its zone; else as early as can be.")]
Within = Annotated[str | None, typer.Option(help="Hours of the day that the block has to lie in, as 9-17.")]
Zone = Annotated[str | None, typer.Option(help="Your time zone; else this computer's.")]
Name = Annotated[str | None, typer.Option(help="The lease's name; else llm_USER, llm_single_USER, llm_multi_USER.")]
Held = Annotated[str | None, typer.Argument(metavar="[NAME]", help="Else the only lease that is held.")]


@app.command()
def slots(
    site: SiteOrAny = "chameleon",
    for_: For = "both",
    node_type: NodeType = None,
    node: NodeName = None,
    gpu: Gpu = "",
    gpu_memory: GpuMemory = 0,
    gpus: Gpus = None,
    interconnect: Interconnect = "",
    count: Count = 1,
    hours: Hours = None,
    start: Start = None,
    within: Within = None,
    zone: Zone = None,
    limit: Annotated[int, typer.Option(min=1, help="How many.")] = 5,
    days: Annotated[int, typer.Option("--calendar", min=0, help="Show the calendar of so many days too.")] = 0,
    as_json: Json = False,
) -> None:
    """Find the earliest blocks in which nodes are free."""
    requirements = requirements_from(
        for_, node_type, node, gpu, gpu_memory, gpus, interconnect, count, hours, start, within, zone
    )
    sites, reconciler = _sites(site), new_reconciler()
    found = reserve.choose_among(sites, reconciler, requirements, start == NOW, limit)
    if as_json:
        print_json(found)
        return
    own_zone = zone_named(zone) if zone else local_zone()
    for one in sites if days else ():
        _show_calendar(one, reconciler, requirements, found, days, own_zone)
    Console().print(slot_table(found, own_zone))


@app.command()
def lease(
    site: SiteOrAny = "chameleon",
    for_: For = "both",
    node_type: NodeType = None,
    node: NodeName = None,
    gpu: Gpu = "",
    gpu_memory: GpuMemory = 0,
    gpus: Gpus = None,
    interconnect: Interconnect = "",
    count: Count = 1,
    hours: Hours = None,
    start: Start = None,
    within: Within = None,
    zone: Zone = None,
    name: Name = None,
    key: Annotated[Path, typer.Option(help="Your private SSH key.")] = Path("~/.ssh/id_ed25519"),
    watch: Annotated[bool, typer.Option("--watch", help="Look until a block appears, and take it.")] = False,
    wait: Annotated[bool, typer.Option(help="Wait for the lease's start, and boot.")] = True,
    run: Annotated[
        str | None, typer.Option(help="A command to run once the nodes answer; then release, whatever happened.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="With --run: do not release, whatever happens.")] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Reserve the earliest block, boot its nodes and say how to reach them. The same command goes on where it was."""
    if run and not wait:
        raise InputError("--run: not with --no-wait, which leaves the nodes unbooted")
    requirements = requirements_from(
        for_, node_type, node, gpu, gpu_memory, gpus, interconnect, count, hours, start, within, zone
    )
    pair = key_pair(key.expanduser())
    check_name(name)
    sites, reconciler = _sites(site), new_reconciler()
    lease_request = lease_request_for(sites[0], name, for_, requirements, pair, start == NOW)
    held = reconciler.journal.active_lease(lease_request.name)
    if held and site == ANY:
        sites = [connect_to(held.site)]
    connected = reserve.site_of_earliest(sites, reconciler, requirements, lease_request.at_once, watch)
    if dry_run:
        show_plan(leasing.plan(connected, reconciler, lease_request), as_json)
        return
    if not held:
        slot = partial(reserve.choose, connected, reconciler, requirements, lease_request.at_once)
        confirm(yes, f"lease {lease_request.name}:", None if watch else lambda: slot_in_words(slot()[0]))
    stop_as_interrupt()
    with releasing.release_on_exit(connected, reconciler, lease_request.name) if run and not keep else nullcontext():
        leased = leasing.lease(connected, reconciler, lease_request, wait=wait, watch=watch)
        if as_json:
            print_json(leased)
        else:
            _show_leased(leased)
        code = _run(run, leased) if run else 0
    raise typer.Exit(FAILED if code else 0)


@app.command()
def status(name: Held = None, as_json: Json = False) -> None:
    """Say what is held, since when, until when, and what it has cost."""
    reconciler = new_reconciler()
    chosen = [active_lease_named(reconciler, name)] if name else list(reconciler.journal.active_leases().values())
    states = [releasing.state(connect_to(active_lease.site), reconciler, active_lease) for active_lease in chosen]
    if as_json:
        print_json(states)
    else:
        Console().print(_states_table(states) if states else "nothing is held")


@app.command()
def extend(
    name: Held = None,
    by: Annotated[str, typer.Option(help="How much longer: 1, 2h30m.")] = "1h",
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Make a lease longer, within the site's rules."""
    longer, reconciler = parse_length(by), new_reconciler()
    active_lease = active_lease_named(reconciler, name)
    connected = connect_to(active_lease.site)
    if dry_run:
        lease, end = releasing.extension(connected, reconciler, active_lease, longer)
        until = (time_in_words(moment, local_zone()) for moment in (lease.end, end))
        show_plan(
            [f"blazar: extend lease {active_lease.name} at {active_lease.site} from {' to '.join(until)}"], as_json
        )
        return
    confirm(yes, f"extend {active_lease.name} by {by}")
    extended = releasing.extend(connected, reconciler, active_lease, longer)
    if as_json:
        print_json(extended)
    else:
        print(f"{extended.name} ends {time_in_words(extended.end, local_zone())}")


@app.command()
def release(name: Held = None, dry_run: DryRun = False, yes: Yes = False, as_json: Json = False) -> None:
    """Give back servers, addresses and lease, and see that nothing is left."""
    reconciler = new_reconciler()
    active_lease = active_lease_named(reconciler, name)
    connected = connect_to(active_lease.site)
    there = reconciler.query(lambda: releasing.remaining(connected, active_lease))
    if dry_run:
        show_plan([f"delete {thing} at {active_lease.site}" for thing in there], as_json)
        return
    confirm(yes, f"release {active_lease.name}: {', '.join(there) or 'nothing there'}")
    releasing.release(connected, reconciler, active_lease)
    if as_json:
        print_json({"released": there})
    else:
        print(f"{active_lease.name} is released; nothing is left at {active_lease.site}")


@app.command()
def doctor(
    site: Site = "chameleon",
    key: Annotated[Path, typer.Option(help="Your private SSH key.")] = Path("~/.ssh/id_ed25519"),
    as_json: Json = False,
) -> None:
    """Check what a lease needs; each check passes or names its remedy."""
    from provision.leasing.doctor import examine

    checks = examine(site, key.expanduser(), new_reconciler())
    if as_json:
        print_json(checks)
    else:
        for check in checks:
            print(check.line)
    raise typer.Exit(0 if all(check.passed for check in checks) else 1)


def requirements_from(
    for_: str,
    node_type: str | None,
    node: str | None,
    gpu: str,
    gpu_memory: float,
    gpus: int | None,
    interconnect: str,
    count: int,
    hours: str | None,
    start: str | None,
    within: str | None,
    zone: str | None,
) -> Requirements:
    own_zone = zone_named(zone) if zone else local_zone()
    named = node_type or node
    return Requirements(
        length=parse_length(hours or LENGTHS[for_]),
        node_type=node_type,
        node=node,
        gpu_model=gpu or ("" if named else "A100"),
        gpu_memory_gib=gpu_memory or (0 if named or gpu else 80),
        gpus=(1 if named else GPUS[for_]) if gpus is None else gpus,
        interconnect=interconnect,
        count=count,
        start=parse_time(start) if start and start != NOW else None,
        hours=parse_hours(within, own_zone) if within else None,
    )


def _sites(name: str) -> list[Testbed]:
    return connect_to_all() if name == ANY else [connect_to(name)]


def _show_calendar(
    site: Testbed,
    reconciler: Reconciler,
    requirements: Requirements,
    found: Sequence[TimeSlot],
    days: int,
    zone: ZoneInfo,
) -> None:
    now, there = reconciler.clock.now(), [slot for slot in found if slot.hosts[0].site == site.name]
    with suppress(NoSuchHost):
        hosts, bookings = fitting(reconciler.query(site.hosts), requirements), reconciler.query(site.bookings)
        Console().print(calendar(hosts, bookings, there, (now, now + timedelta(days=days)), zone))


def lease_request_for(
    site: Testbed, name: str | None, for_: str, requirements: Requirements, pair: KeyPair, at_once: bool
) -> LeaseRequest:
    user = re.sub(r"[^A-Za-z0-9_.-]", "_", site.user().partition("@")[0])
    part = "" if for_ == "both" else for_
    lease_name = name or "_".join(filter(None, ("llm", part, user)))
    return LeaseRequest(lease_name, "-".join(filter(None, ("node", "llm", part, user))), requirements, pair, at_once)


def check_name(name: str | None) -> None:
    if name is not None and not NAME.fullmatch(name):
        raise BadName(f"--name {name!r}: allowed: letters, digits, _ . -, at most 55, a letter or digit first")


def new_reconciler() -> Reconciler:
    return Reconciler(Journal(), Clock(), _say())


def _say() -> Callable[[str], None]:
    last = ""

    def say(line: str) -> None:
        nonlocal last
        if line != last:
            with suppress(OSError):
                print(line, file=sys.stderr, flush=True)
        last = line

    return say


def active_lease_named(reconciler: Reconciler, name: str | None) -> ActiveLease:
    """The holding of that name, or the only one."""
    active_leases = reconciler.journal.active_leases()
    if name is None and len(active_leases) == 1:
        return next(iter(active_leases.values()))
    if name is None:
        raise BadName(f"NAME: which one? held: {', '.join(sorted(active_leases)) or 'nothing'}")
    return releasing.get_active_lease(reconciler, name)


def confirm(yes: bool, what: str, more: Callable[[], str] | None = None) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise InputError(f"{what}: needs --yes where there is no terminal to ask at")
    typer.confirm(f"{what} {more()}" if more else what, abort=True, err=True)


def _states_table(states: Sequence[releasing.State]) -> Table:
    table = Table("name", "site", "since", "lease", "until", "servers", "addresses", "cost until now (SU)")
    for state in states:
        lease = state.lease
        table.add_row(
            state.active_lease.name,
            state.active_lease.site,
            time_in_words(datetime.fromisoformat(state.active_lease.since), local_zone()),
            lease.status if lease else "gone",
            time_in_words(lease.end, local_zone()) if lease else "",
            ", ".join(f"{server.name} {server.status}" for server in state.servers),
            ", ".join(state.ips),
            "?" if state.used_su is None else f"{state.used_su:.1f}",
        )
    return table


def _show_leased(leased: leasing.Leased) -> None:
    zone = local_zone()
    print(f"{leased.lease.name} is {leased.lease.status} until {time_in_words(leased.lease.end, zone)}")
    for machine in leased.machines:
        print(f"{machine.server}: {machine.login.command}")


def _run(command: str, leased: leasing.Leased) -> int:
    """The exit code of the command of --run, which finds the machines by two variables."""
    nodes = " ".join(one.login.host for one in leased.machines)
    told = {"TESTBED_LEASE": leased.lease.name, "TESTBED_NODES": nodes}
    return subprocess.run(command, shell=True, env={**os.environ, **told}).returncode


def show_plan(lines: Sequence[str], as_json: bool) -> None:
    if as_json:
        print_json({"would": list(lines)})
    else:
        print("\n".join(lines) or "nothing would be done")


def print_json(data: Any) -> None:
    print(json.dumps(data, indent=2, default=_plain))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return str(value)
