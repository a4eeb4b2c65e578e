"""`testbed semester`: the check of all suites before a semester."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from experiments.cli.output import print_json, say, show_plan
from experiments.cli.parsing.end_when_idle import EndWhenIdleOptions
from experiments.cli.parsing.group import Commands
from experiments.cli.parsing.options import DryRun, Json, Notify, SuiteFile, expand_options
from experiments.errors import InputError, unknown_name_error

app = Commands()
CHECKS_FOLDER = Path("results/semester")


@app.command()
@expand_options
def semester(
    context: typer.Context,
    *,
    suites: Annotated[list[str] | None, typer.Argument(metavar="SUITE", help="Default: all suites.")] = None,
    suite_file: SuiteFile = None,
    versions: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SET", help="Only these versions: as-taught, current or newest; may be given several times."
        ),
    ] = None,
    results: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of all checks and of their history.")
    ] = CHECKS_FOLDER,
    lease: Annotated[
        str | None,
        typer.Option(metavar="NODE_TYPE", help="Also lease nodes of this type, and run at full size on them."),
    ] = None,
    site: Annotated[str, typer.Option(help="With --lease: the site.")] = "chameleon",
    hours: Annotated[float, typer.Option(min=0.5, help="With --lease: lease length for each set of versions.")] = 3.0,
    max_hours: Annotated[
        float | None, typer.Option(help="With --lease, required: budget for all leases, in hours.")
    ] = None,
    idle: EndWhenIdleOptions,
    above: Annotated[
        float | None,
        typer.Option(
            metavar="SU", help="With --lease: send a message if a lease has cost more service units than this."
        ),
    ] = None,
    summary: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.md", help="Append a summary in Markdown to this file, such as $GITHUB_STEP_SUMMARY."
        ),
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML to this file.")] = None,
    notify: Notify = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Check all suites before a semester: what changed, what to fix.

    Each suite runs with tiny models, and is predicted at full size for its cards, with three sets of versions: as
    taught, current, and the newest releases that can be installed together. An interrupted check is resumed. Exit
    code 1: the status of a statement or the outcome of a row flipped since the last check.
    """
    from experiments.cli.semester.notices import LeaseWatch, send
    from experiments.notify.send import Notifier
    from experiments.semester.check import CheckCallbacks, CheckRequest, run_check
    from experiments.semester.outcome import outcome_of
    from experiments.semester.outputs import as_data, markdown, message, write_page
    from experiments.semester.outputs import junit as as_junit
    from experiments.semester.parts import CheckLease
    from experiments.semester.versions import VERSION_SETS
    from experiments.suites.suite import suites_in_group, user_suites
    from experiments.system.files import open_output, write_atomically
    from experiments.system.packages import require_packages
    from experiments.system.signals import interrupt_on_stop_signals

    require_packages("ruptures")
    if lease and max_hours is None:
        raise InputError(f"--lease {lease}: needs --max-hours, the budget for all leases")
    end_when_idle = tuple(idle.arguments())
    if end_when_idle and not lease:
        raise InputError(f"{' '.join(end_when_idle[:2])}: allowed with --lease only")
    names = suites or (user_suites() if suite_file else [suite.suite for suite in suites_in_group("both")])
    for name in versions or ():
        if name not in VERSION_SETS:
            raise unknown_name_error("set of versions", name, VERSION_SETS, "--versions")
    chosen = tuple(one for one in VERSION_SETS if one in (versions or VERSION_SETS))
    requested_lease = (
        CheckLease(site, lease, hours, max_hours, end_when_idle) if lease and max_hours is not None else None
    )
    request = CheckRequest(results, chosen, tuple(names), requested_lease, context.obj)
    if dry_run:
        show_plan([part.title for part in request.parts()], as_json)
        return
    notifier = Notifier(notify or ())
    interrupt_on_stop_signals()
    send_message = partial(send, notifier)
    on_lease = LeaseWatch(send_message, above) if requested_lease else CheckCallbacks.on_lease
    callbacks = CheckCallbacks(partial(say, stderr=as_json), send_message, on_lease)
    folder, check = run_check(request, callbacks)
    outcome = outcome_of(folder, check, request.parts())
    page = write_page(folder, outcome)
    if summary:
        with open_output(summary, "--summary", append=True) as file:
            file.write(markdown(outcome))
    if junit:
        write_atomically(junit, as_junit(outcome))
    send_message(*message(outcome))
    if as_json:
        print_json({"page": page, "headline": outcome.headline, **as_data(outcome)})
    else:
        flips = [f"flipped: {flip.line}" for flip in outcome.flips]
        say("\n".join([outcome.headline, *flips, *(f"to fix: {one}" for one in outcome.to_fix), f"page: {page}"]))
    raise typer.Exit(int(bool(outcome.flips)))
