"""`testbed calibrate`: measure how long the GPU operations of the labs take on this machine."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from experiments.cli.output import say
from experiments.cli.parsing.group import Commands
from provision.words import number_with_noun

app = Commands()
Suites = Annotated[list[str] | None, typer.Argument(metavar="SUITE[/ROW]", help="Suites or rows; default: all suites.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE",
        help="File for the table of operation times; default: a file for each GPU model, in the cache folder.",
    ),
]


@app.command("calibrate")
def calibrate_command(suites: Suites = None, out: Out = None) -> None:
    """Time the labs' GPU operations on this machine, to predict times.

    An operation is a kernel or a copy, such as a matrix multiplication. The command takes several minutes, resumes
    after an interruption, and stores the measured times in a table. Predictions for cards with the same chip as this
    GPU then use the table.
    """
    from experiments.prediction.predict import trace_operations
    from experiments.prediction.service import select_rows
    from experiments.prediction.times.calibrate import calibrate, this_machine
    from experiments.prediction.times.table import calibrated_table_path
    from experiments.system.files import cache_folder
    from experiments.system.packages import require_packages

    require_packages("torch")
    machine = this_machine(" ".join(["testbed", *sys.argv[1:]]))
    table = out or calibrated_table_path(machine.card)
    targets: list[str | None] = [*suites] if suites else [None]
    specs = [spec for target in targets for spec in select_rows(target, None)]
    say(f"tracing {number_with_noun(len(specs), 'row')} to find the operations to measure")
    operation_keys = trace_operations(specs, cache_folder())
    table.parent.mkdir(parents=True, exist_ok=True)
    calibrate(operation_keys, table, machine, say)
    say(f"measured times of {machine.gpu} are in {table}")
