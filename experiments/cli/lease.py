"""`testbed slots | lease | status | extend | release | doctor`: lease machines of a testbed."""

import os
import subprocess
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.cli.lease_options import (
    ANY_SITE,
    LeaseOptions,
    LeaseRequirementsMissing,
    active_lease_named,
    confirm,
    connect_to_sites_if_ready,
    gpu_warnings,
    key_for_site,
    new_reconciler,
    reconciler_of_lease,
)
from experiments.cli.output import console, print_json, say, say_command, show_checks, show_plan
from experiments.cli.parsing.end_when_idle import EndWhenIdleOptions
from experiments.cli.parsing.group import Commands
from experiments.cli.parsing.options import (
    DEFAULT_KEY,
    ActiveName,
    DryRun,
    Image,
    Json,
    Key,
    Name,
    Notify,
    SiteOrAny,
    Watch,
    Yes,
    expand_options,
)
from experiments.cli.parsing.values import parse_time_option
from experiments.errors import InputError
from provision.choices import DEMO, LEASING_SITES

if TYPE_CHECKING:
    from provision.leasing.lease import LeaseResult
    from provision.leasing.reconciler import Reconciler
    from provision.models import Host, TimeSlot
    from provision.sites.base import LeasingSite

EXIT_FAILED = 3

app = Commands()


@app.command()
@expand_options
def slots(
    options: LeaseOptions,
    site: SiteOrAny = "chameleon",
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of time slots.")] = 5,
    days: Annotated[int, typer.Option("--calendar", min=0, help="Also show a calendar of the next N days.")] = 0,
    bookings: Annotated[
        bool,
        typer.Option("--bookings", help="In place of free slots, show everybody's reservations, with exact times."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Find the earliest time slots in which nodes are free."""
    from experiments.cli.tables.leases import bookings_table, slots_table
    from provision.leasing import reserve

    requirements = options.requirements()
    sites, reconciler = _connect_to_sites(site), new_reconciler(site)
    if bookings:
        booked = reserve.bookings_among(sites, reconciler, requirements)
        if as_json:
            print_json(booked)
        else:
            console().print(bookings_table(booked, options.time_zone))
        return
    free_slots = reserve.choose_slots_among(sites, reconciler, requirements, options.starts_now, limit)
    for line in gpu_warnings([slot.hosts[0] for slot in free_slots]):
        say(line, stderr=True)
    if as_json:
        print_json(free_slots)
        return
    for connected in sites if days else ():
        _show_calendar(connected, reconciler, options, free_slots, days)
    console().print(slots_table(free_slots, options.time_zone))
    say(_expected_times(options, free_slots[0].hosts))


@app.command()
@expand_options
def lease(
    options: LeaseOptions,
    idle: EndWhenIdleOptions,
    site: SiteOrAny = "chameleon",
    name: Name = None,
    key: Key = DEFAULT_KEY,
    image: Image = None,
    watch: Watch = False,
    wait: Annotated[bool, typer.Option(help="Wait for the lease's start and boot its nodes.")] = True,
    run: Annotated[
        str | None, typer.Option(help="Command to run when the nodes answer; the lease is released after it.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="With --run: do not release the lease.")] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Lease the earliest time slot; boot its nodes; print SSH commands.

    Resumes where it was interrupted.
    """
    from experiments.system.signals import interrupt_on_stop_signals
    from provision.availability.matching import matching_hosts
    from provision.configure.end_when_idle import set_up_end_when_idle
    from provision.leasing import lease as leasing
    from provision.leasing import release as releasing
    from provision.leasing import reserve
    from provision.leasing.account import require_lasting_credential
    from provision.leasing.cost import report_cost_on_exit
    from provision.leasing.request import slot_in_words
    from provision.sites.base import connect_to
    from provision.ssh.login import KeyPair

    if run and not wait:
        raise InputError("--run: not allowed with --no-wait, which does not boot the nodes")
    key = key_for_site(site, key)
    options.check(name)
    end_when_idle = idle.parse(options.count, wait)
    try:
        sites, reconciler = connect_to_sites_if_ready(site, key), new_reconciler(site)
    except LeaseRequirementsMissing as problem:
        if not dry_run or (problem.key_is_unusable and key != DEFAULT_KEY.expanduser()):
            raise
        request_without_account = replace(
            options.request_for_user("USER", name, KeyPair(file=key, public=""), image), end_when_idle=end_when_idle
        )
        show_plan(leasing.planned_calls_without_account(site, request_without_account), as_json)
        say(f"not ready: {problem}", stderr=True)
        return
    lease_request = replace(options.request(sites[0], name, key, image), end_when_idle=end_when_idle)
    requirements, starts_now = lease_request.requirements, lease_request.starts_now
    active = reconciler.journal.active_lease(lease_request.name)
    if active and site == ANY_SITE:
        sites = [connect_to(active.site, active.account.entry if active.account else "")]
    connected = reserve.site_with_earliest_slot(sites, reconciler, requirements, starts_now, watch)
    hosts = matching_hosts(reconciler.query(connected.hosts), requirements)
    for line in gpu_warnings(hosts):
        say(line, stderr=True)
    if dry_run:
        show_plan(leasing.planned_calls(connected, reconciler, lease_request), as_json)
        if not as_json:
            say(_expected_times(options, hosts[: options.count]))
        return
    if run and not keep and not active:
        require_lasting_credential(connected, reconciler, requirements)
    if not active:
        find_slots = partial(reserve.choose_slots, connected, reconciler, requirements, starts_now)
        confirm(yes, f"lease {lease_request.name}", None if watch else lambda: slot_in_words(find_slots()[0]))
    interrupt_on_stop_signals()
    at_end = releasing.release_on_exit(connected, reconciler, lease_request.name) if run and not keep else nullcontext()
    with report_cost_on_exit(reconciler, lease_request.name), at_end:
        leased = leasing.lease(connected, reconciler, lease_request, wait=wait, watch=watch)
        if end_when_idle:
            set_up_end_when_idle(connected, reconciler, lease_request.name, end_when_idle)
        if as_json:
            print_json(leased)
        else:
            _show_lease_result(leased)
        code = _run_command(run, leased) if run else 0
    raise typer.Exit(EXIT_FAILED if code else 0)


@app.command()
def status(
    name: ActiveName = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="YYYY-MM-DD", help="In place of active leases, show all leases since this day and their cost."
        ),
    ] = None,
    notify: Notify = None,
    within: Annotated[
        str, typer.Option(help="With --notify: send a message if a lease begins or ends within this time.")
    ] = "1h",
    above: Annotated[
        float | None,
        typer.Option(
            metavar="SU", help="With --notify: send a message if a lease has cost more service units than this."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show active leases: time left, nodes, cost so far and in total.

    With --notify, for example in a cron job, messages are sent for leases that begin or end soon or cost too much.
    """
    from experiments.cli.semester.notices import notify_of_leases
    from experiments.notify.send import Notifier
    from provision.availability.times import parse_length
    from provision.errors import NoCredentials, OtherAccount, SiteError
    from provision.leasing import release as releasing
    from provision.leasing.account import connect_to_site_of

    soon, notifier = parse_time_option("--within", parse_length, within), Notifier(notify or ())
    reconciler = reconciler_of_lease(name)
    if since:
        _show_past_leases(reconciler, name, since, as_json)
        return
    chosen = [active_lease_named(reconciler, name)] if name else list(reconciler.journal.active_leases().values())
    states, problems = [], []
    for active_lease in chosen:
        try:
            leased_site = connect_to_site_of(reconciler, active_lease)
            states.append(releasing.lease_snapshot(leased_site, reconciler, active_lease))
        except (OtherAccount, NoCredentials, SiteError) as problem:
            problems.append(problem)
    if len(problems) == len(chosen) == 1:
        raise problems[0]
    if notifier.has_addresses:
        notify_of_leases(states, notifier, reconciler.clock.now(), soon, above)
    if as_json:
        print_json(states)
    elif states:
        from experiments.cli.tables.leases import states_table

        console().print(states_table(states, reconciler.clock.now()))
    elif not chosen:
        print("no active lease")
    for line in map(str, problems):
        reconciler.report(line)
    if problems:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def extend(
    name: ActiveName = None,
    by: Annotated[str, typer.Option(help="Additional time, such as 1h or 2h30m.")] = "1h",
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Extend a lease, within the site's rules."""
    from provision.availability.times import local_zone, parse_length, time_in_words
    from provision.configure.end_when_idle import set_up_end_when_idle
    from provision.leasing import release as releasing
    from provision.leasing.account import connect_to_site_of
    from provision.leasing.request import requested_end_when_idle

    longer, reconciler = parse_time_option("--by", parse_length, by), reconciler_of_lease(name)
    active_lease = active_lease_named(reconciler, name)
    connected = connect_to_site_of(reconciler, active_lease)
    if dry_run:
        lease, end = releasing.planned_extension(connected, reconciler, active_lease, longer)
        until = (time_in_words(moment, local_zone()) for moment in (lease.end, end))
        show_plan(
            [f"blazar: extend lease {active_lease.name} at {active_lease.site} from {' to '.join(until)}"], as_json
        )
        return
    confirm(yes, f"extend {active_lease.name} by {by}")
    extended = releasing.extend(connected, reconciler, active_lease, longer)
    if (end_when_idle := requested_end_when_idle(active_lease)) and active_lease.machines:
        set_up_end_when_idle(connected, reconciler, active_lease.name, end_when_idle)
    if as_json:
        print_json(extended)
    else:
        say(f"{extended.name} ends {time_in_words(extended.end, local_zone())}")


@app.command()
def release(name: ActiveName = None, dry_run: DryRun = False, yes: Yes = False, as_json: Json = False) -> None:
    """Release servers, addresses and lease; verify that none is left."""
    from provision.leasing import release as releasing
    from provision.leasing.account import connect_to_site_of
    from provision.leasing.cost import report_cost_on_exit
    from provision.leasing.resources import list_resources_once

    reconciler = reconciler_of_lease(name)
    active_lease = active_lease_named(reconciler, name)
    connected = connect_to_site_of(reconciler, active_lease)
    resources = list_resources_once(connected, active_lease)
    if dry_run:
        show_plan([f"delete {resource} at {active_lease.site}" for resource in resources], as_json)
        return
    confirm(yes, f"release {active_lease.name}: {', '.join(resources) or 'no resources'}")
    with report_cost_on_exit(reconciler, active_lease.name):
        releasing.release(connected, reconciler, active_lease)
    if as_json:
        print_json({"released": resources})
    else:
        say(f"{active_lease.name} is released; no resource is left at {active_lease.site}")


@app.command()
def doctor(
    site: Annotated[
        str | None, typer.Option(help=f"Check this site: {', '.join((*LEASING_SITES, DEMO))}, a region, or slurm.")
    ] = None,
    profile: Annotated[str | None, typer.Option(help="With --site slurm: name or YAML file of a profile.")] = None,
    account: Annotated[str | None, typer.Option(help="With --site slurm: the project that is charged.")] = None,
    key: Key = DEFAULT_KEY,
    image: Image = None,
    as_json: Json = False,
) -> None:
    """Check this machine, a site or a cluster; say how to fix failures.

    Without --site, shows what this machine can run. With --site, checks what a lease or a Slurm run needs.
    """
    from experiments.run_options import RunOptions
    from experiments.runners.preflight import preflight
    from provision.checks import abilities_in_words

    options = RunOptions(profile=profile, account=account)
    checks = preflight(options, site, key_for_site(site or "", key), new_reconciler(site or ""), image)
    if as_json:
        print_json(checks)
    else:
        show_checks(checks, *([] if site else [abilities_in_words(checks)]))
    raise typer.Exit(1 if any(check.status == "failed" for check in checks) else 0)


def _expected_times(options: LeaseOptions, hosts: "Sequence[Host]") -> str:
    """Return the expected duration of the lease's labs on ``hosts``, as one line."""
    from experiments.history.lease_length import expected_times_on
    from experiments.suites.suite import suites_in_group

    return expected_times_on(hosts, suites_in_group(options.for_), Path("results")).summary


def _connect_to_sites(name: str) -> "list[LeasingSite]":
    from provision.sites.base import connect_to, connect_to_all

    return connect_to_all() if name == ANY_SITE else [connect_to(name)]


def _show_calendar(
    site: "LeasingSite", reconciler: "Reconciler", options: LeaseOptions, slots: "Sequence[TimeSlot]", days: int
) -> None:
    from provision.availability.calendar import draw_calendar
    from provision.availability.matching import matching_hosts
    from provision.errors import NoSuchHost

    now, site_slots = reconciler.clock.now(), [slot for slot in slots if slot.hosts[0].site == site.name]
    with suppress(NoSuchHost):
        hosts = matching_hosts(reconciler.query(site.hosts), options.requirements())
        bookings, period = reconciler.query(site.bookings), (now, now + timedelta(days=days))
        console().print(draw_calendar(hosts, bookings, site_slots, period, options.time_zone))


def _show_past_leases(reconciler: "Reconciler", name: str | None, since: str, as_json: bool) -> None:
    """Print the leases since the day ``since`` (local time) with their costs. name: name of the leases; None: all."""
    from dataclasses import asdict

    from provision.availability.times import local_zone, time_in_words
    from provision.leasing.past import past_leases, total_cost_in_words

    all_leases = past_leases(reconciler.journal.entries(), reconciler.clock.now())
    begin = _parse_day(since).replace(tzinfo=local_zone())
    leases = [past_lease for past_lease in all_leases if past_lease.start >= begin and name in (None, past_lease.name)]
    if as_json:
        print_json([asdict(past_lease) | {"used_su": past_lease.used_su} for past_lease in leases])
        return
    for past_lease in leases:
        start, end = (time_in_words(moment, local_zone()) for moment in (past_lease.start, past_lease.end))
        cost = "unknown" if past_lease.used_su is None else f"{past_lease.used_su:.1f} service units"
        print(f"{past_lease.name} at {past_lease.site}, {start} to {end}: {cost}")
    print(total_cost_in_words(leases))


def _parse_day(text: str) -> datetime:
    try:
        return datetime.strptime(text, "%Y-%m-%d")
    except ValueError:
        raise InputError(f"--since {text}: allowed: a day such as 2026-09-01") from None


def _show_lease_result(leased: "LeaseResult") -> None:
    from experiments.cli.tables.leases import host_in_words
    from provision.availability.times import local_zone, time_in_words

    start, end = (time_in_words(time, local_zone()) for time in (leased.lease.start, leased.lease.end))
    say(f"{leased.lease.name} is {leased.lease.status}\nstart: {start}\nend: {end}")
    for host in leased.hosts:
        say(f"node: {host_in_words(host)}")
    for machine in leased.machines:
        say_command(machine.server, machine.login.command)


def _run_command(command: str, leased: "LeaseResult") -> int:
    """Run the command of --run with the environment variables TESTBED_LEASE and TESTBED_NODES; return its exit code."""
    nodes = " ".join(one.login.host for one in leased.machines)
    variables = {"TESTBED_LEASE": leased.lease.name, "TESTBED_NODES": nodes}
    return subprocess.run(command, shell=True, env={**os.environ, **variables}).returncode  # noqa: S602 - the user's own command
