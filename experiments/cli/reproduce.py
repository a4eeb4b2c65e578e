"""`testbed reproduce`: lease machines, run suites on them, report, and release, in one command."""

from typing import Annotated

import typer

from experiments.cli.lease_options import (
    LeaseOptions,
    confirm,
    connect_to_sites_if_ready,
    key_for_site,
    new_reconciler,
    reject_missing_file,
)
from experiments.cli.output import console, show_plan
from experiments.cli.parsing.end_when_idle import EndWhenIdleOptions
from experiments.cli.parsing.group import Commands
from experiments.cli.parsing.options import (
    DEFAULT_KEY,
    DryRun,
    Image,
    Key,
    Name,
    Notify,
    OmitFields,
    RegistryLogin,
    Site,
    SuiteFile,
    Watch,
    Yes,
    expand_options,
)
from experiments.cli.parsing.values import parse_time_option
from experiments.run_options import RunOptions
from experiments.system.packages import require_packages

app = Commands()


@app.command(name="reproduce")
@expand_options
def reproduce_command(
    context: typer.Context,
    lease: LeaseOptions,
    idle: EndWhenIdleOptions,
    options: Annotated[
        RunOptions, OmitFields("site", "profile", "account", "in_container", "share_gpus", "predict_only")
    ],
    suites: Annotated[
        list[str] | None, typer.Argument(metavar="SUITE", help="Suites to run; default: the labs that --for selects.")
    ] = None,
    suite_file: SuiteFile = None,
    site: Site = "chameleon",
    name: Name = None,
    key: Key = DEFAULT_KEY,
    image: Image = None,
    registry_login: RegistryLogin = None,
    max_hours: Annotated[
        str | None, typer.Option(help="Budget: reject a lease that is longer, such as 3 or 2h30m.")
    ] = None,
    watch: Watch = False,
    keep: Annotated[bool, typer.Option("--keep", help="Do not release the lease at the end.")] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    notify: Notify = None,
) -> None:
    """Lease, configure, run, evaluate, report, release: all in one.

    Resumes after an interruption.
    """
    from dataclasses import replace

    from experiments.cli.semester.notices import send, send_run_messages
    from experiments.cli.tables.verdicts import show_runs
    from experiments.notify.send import Notifier
    from experiments.pipeline import options_per_suite
    from experiments.reproduce import LeaseEnded, Reproduction, planned_operations, reproduce
    from experiments.runners.progress import view_on
    from experiments.suites.suite import suites_in_group, user_suites
    from experiments.system.signals import interrupt_on_stop_signals
    from provision.availability.times import parse_length
    from provision.configure.playbook import Setup
    from provision.sites.base import is_demo

    require_packages("ansible_runner")
    notifier = Notifier(notify or ())
    names = suites or (user_suites() if suite_file else [suite.suite for suite in suites_in_group(lease.for_)])
    reject_missing_file("--registry-login", registry_login)
    key = key_for_site(site, key)
    lease.check(name)
    end_when_idle = idle.parse(lease.count)
    max_length = parse_time_option("--max-hours", parse_length, max_hours) if max_hours else None
    (connected,), reconciler = connect_to_sites_if_ready(site, key), new_reconciler(site)
    if is_demo(site) and not dry_run:
        options = replace(options, size="tiny")
    reproduction = Reproduction(
        run_options=tuple(options_per_suite(names, replace(options, site=site, command=context.obj))),
        lease_request=replace(lease.request(connected, name, key, image), end_when_idle=end_when_idle),
        site=connected,
        setup=Setup(options.image_variant, registry_login=registry_login),
        max_length=max_length,
        choose_length=lease.hours is None,
        keep=keep,
        watch=watch,
    )
    if dry_run:
        show_plan(planned_operations(reproduction, reconciler), as_json=False)
        return
    output = console()
    interrupt_on_stop_signals()
    try:
        runs = reproduce(reproduction, reconciler, view_on(output), lambda slot: confirm(yes, f"lease {slot}"))
    except LeaseEnded as ended:
        send(notifier, "testbed: a lease ended itself or was deleted", str(ended))
        raise
    finished = show_runs(send_run_messages(runs, notifier), output)
    raise typer.Exit(max(one.evaluation.exit_code for one in finished))
