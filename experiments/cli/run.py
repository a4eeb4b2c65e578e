"""`testbed run`: run the rows of suites, evaluate and report them."""

from typing import Annotated

import typer

from experiments.cli.output import console, download_progress_on, print_json, say
from experiments.cli.parsing.group import Commands
from experiments.cli.parsing.options import Group, Json, Notify, SuiteFile, expand_options
from experiments.errors import InputError
from experiments.run_options import RunOptions

app = Commands()


@app.command()
@expand_options
def run(
    context: typer.Context,
    options: RunOptions,
    suites: Annotated[
        list[str] | None, typer.Argument(metavar="SUITE", help="Names of suites; `testbed list` shows them.")
    ] = None,
    group: Group = None,
    suite_file: SuiteFile = None,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="Cancel the Slurm jobs that the same command started earlier.")
    ] = False,
    notify: Notify = None,
    as_json: Json = False,
) -> None:
    """Run rows that have no result or have changed; evaluate, report."""
    from dataclasses import replace

    from experiments.cli.semester.notices import send_run_messages
    from experiments.cli.tables.verdicts import run_as_data, show_runs
    from experiments.notify.send import Notifier
    from experiments.pipeline import cancel_jobs, options_per_suite, run_suites
    from experiments.runners.progress import view_on
    from experiments.runners.targets import leases_hint
    from experiments.suites.suite import suites_in_group, user_suites

    suites = suites or (user_suites() if suite_file and not group else None)
    if bool(suites) == bool(group):
        raise InputError("run: needs SUITE or --suite-file, or else --group; `testbed list` shows the suites")
    names = suites or [suite.suite for suite in suites_in_group(group or "both")]
    all_options = options_per_suite(names, replace(options, command=context.obj))
    output = console(stderr=as_json)
    if cancel:
        cancelled = cancel_jobs(all_options, view_on(output))
        say(f"cancelled: {', '.join(cancelled) or 'nothing'}", stderr=as_json)
        return
    notifier = Notifier(notify or ())
    if hint := leases_hint(options.site):
        say(hint, stderr=True)
    runs = run_suites(all_options, view_on(output), download_progress_on(output))
    finished = show_runs(send_run_messages(runs, notifier), output)
    if as_json:
        print_json([run_as_data(one) for one in finished])
    raise typer.Exit(max(one.evaluation.exit_code for one in finished))
