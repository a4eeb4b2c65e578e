"""The commands of `testbed`, in the order of its help. A command's module is imported when the command is chosen."""

from importlib import import_module
from typing import Any, NamedTuple

import typer


class Entry(NamedTuple):
    """A command as `testbed --help` shows it. module: its module in experiments.cli. help: first line of its help."""

    section: str
    module: str
    help: str


EXPERIMENTS, RESULTS, PREDICTION, MACHINES = "Experiments", "Results", "Prediction", "Machines"

COMMANDS = {
    "list": Entry(EXPERIMENTS, "results", "List the suites, or the rows of one."),
    "check": Entry(EXPERIMENTS, "check", "Check the files of your own suites: show all mistakes at once."),
    "run": Entry(EXPERIMENTS, "run", "Run rows that have no result or have changed; evaluate, report."),
    "reproduce": Entry(EXPERIMENTS, "reproduce", "Lease, configure, run, evaluate, report, release: all in one."),
    "watch": Entry(EXPERIMENTS, "monitoring.watch", "Show a run live: rows, GPU load, logs, verdicts, cost."),
    "logs": Entry(EXPERIMENTS, "monitoring.remote", "Print a row's log, even if the row runs on another machine."),
    "evaluate": Entry(RESULTS, "results", "Evaluate stored results with current suites; verify checksums."),
    "report": Entry(RESULTS, "results", "Write a run's report again; for several runs, also their index."),
    "compare": Entry(RESULTS, "results", "Compare two runs of one suite."),
    "history": Entry(RESULTS, "semester.history", "Record runs; show what changed, and which versions differ."),
    "blame": Entry(RESULTS, "semester.blame", "Find the package whose new version changed a statement or a row."),
    "semester": Entry(RESULTS, "semester.semester", "Check all suites before a semester: what changed, what to fix."),
    "bundle": Entry(RESULTS, "semester.bundle", "Write an archive of a run, with checksums, to hand in."),
    "grade": Entry(RESULTS, "semester.bundle", "Check archives that students hand in; show points and problems."),
    "schema": Entry(RESULTS, "results", "Print the JSON schemas of suites and of the files of a run."),
    "predict": Entry(PREDICTION, "predict", "Predict memory and time of rows, models or scripts without a GPU."),
    "fit": Entry(PREDICTION, "fit", "Find the largest batch that fits, and changes that save memory."),
    "calibrate": Entry(PREDICTION, "calibrate", "Time the labs' GPU operations on this machine, to predict times."),
    "cards": Entry(PREDICTION, "catalog", "List the GPU models that predictions and labs know."),
    "models": Entry(PREDICTION, "catalog", "List the language models that rows and --model know."),
    "slots": Entry(MACHINES, "lease", "Find the earliest time slots in which nodes are free."),
    "lease": Entry(MACHINES, "lease", "Lease the earliest time slot; boot its nodes; print SSH commands."),
    "configure": Entry(MACHINES, "configure", "Install driver, Docker, Slurm and image on the nodes of a lease."),
    "status": Entry(MACHINES, "lease", "Show active leases: time left, nodes, cost so far and in total."),
    "top": Entry(MACHINES, "monitoring.remote", "Show the GPUs of all nodes and the rows on them, until Ctrl-C."),
    "notebook": Entry(MACHINES, "monitoring.remote", "Serve Jupyter from the leased machine through a tunnel."),
    "extend": Entry(MACHINES, "lease", "Extend a lease, within the site's rules."),
    "release": Entry(MACHINES, "lease", "Release servers, addresses and lease; verify that none is left."),
    "doctor": Entry(MACHINES, "lease", "Check this machine, a site or a cluster; say how to fix failures."),
    "orphans": Entry(MACHINES, "orphans", "List resources that testbed created and no active lease uses."),
}


def load_command(name: str) -> Any:
    """Import the module of a command; return the command."""
    registered = import_module(f"experiments.cli.{COMMANDS[name].module}").app.registered_commands
    (info,) = (one for one in registered if name == (one.name or one.callback.__name__))
    return typer.main.get_command_from_info(info, pretty_exceptions_short=False, rich_markup_mode=None)
