"""`testbed watch`: a live, read-only view of a run."""

import os
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from experiments.cli.output import print_json, say
from experiments.cli.parsing.group import Commands
from experiments.cli.parsing.options import Json, SuiteFileOfRun
from experiments.errors import InputError
from experiments.system.packages import require_packages

app = Commands()
DRIVER_VARIABLE = "TEXTUAL_DRIVER"
"""Environment variable that textual-serve sets when it starts this command. The command then needs no terminal."""


@app.command()
def watch(
    folder: Annotated[Path, typer.Argument(metavar="RUN_FOLDER", help="Folder of the run.")] = Path("results/latest"),
    suite_file: SuiteFileOfRun = None,  # noqa: ARG001 - its callback uses it
    browser: Annotated[
        bool, typer.Option("--browser", help="Serve the view to this machine's browsers; the address has a token.")
    ] = False,
    port: Annotated[int, typer.Option(min=1024, help="With --browser: port of the address.")] = 8642,
    as_json: Json = False,
) -> None:
    """Show a run live: rows, GPU load, logs, verdicts, cost.

    The view changes nothing; close it whenever you like. For rows on leased nodes and clusters, it shows the results
    and logs that `testbed run` or `testbed reproduce` has downloaded so far. With --json, the state is printed once.
    """
    from pydantic import TypeAdapter

    from experiments.watch.state import RunStatus, RunWatcher

    watcher = RunWatcher(folder)
    if as_json:
        print_json(TypeAdapter(RunStatus).dump_python(watcher.read(), mode="json"))
        return
    require_packages("textual", "textual_serve")
    if browser:
        from experiments.watch.browser import WatchServer

        server = WatchServer(watcher.folder.path, port)
        say(f"open {server.address} (press Ctrl-C to stop)")
        server.serve()
        return
    if not (sys.stdout.isatty() or DRIVER_VARIABLE in os.environ):
        raise InputError("testbed watch: needs a terminal; allowed without one: --browser, --json")
    from experiments.watch.screen import WatchApp

    WatchApp(watcher, partial(_lease_costs, watcher.folder.read_run().site)).run()


def _lease_costs(site: str) -> str:
    """Return the time left and the cost of all active leases as one line; empty for a site that leases no machines."""
    from experiments.cli.tables.leases import lease_line
    from experiments.runners.targets import leases_machines
    from provision.clock import Clock
    from provision.leasing.journal import Journal
    from provision.leasing.reconciler import Reconciler
    from provision.leasing.release import LeaseSnapshot, active_lease_states

    if not leases_machines(site):
        return ""
    reconciler = Reconciler(Journal(), Clock(), lambda _: None)
    return "; ".join(
        lease_line(state, datetime.now(UTC)) if isinstance(state, LeaseSnapshot) else f"{lease.name}: {state}"
        for lease, state in active_lease_states(reconciler)
    )
