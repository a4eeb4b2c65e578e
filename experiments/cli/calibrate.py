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


Host = Annotated[bool, typer.Option("--host", help="Measure only how fast this machine's host is. This takes seconds.")]


@app.command("calibrate")
def calibrate_command(suites: Suites = None, out: Out = None, host: Host = False) -> None:
    """Time the labs' GPU operations on this machine, to predict times.

    An operation is a kernel or a copy, such as a matrix multiplication. The command takes several minutes, resumes
    after an interruption, and stores the measured times in a table. Predictions for cards with the same chip as this
    GPU then use the table.

    --host takes seconds. It measures only how long the host, the CPU, needs to start an operation, because hosts of
    machines with the same GPU differ. Predictions for cards with the same chip then assume a host like this one.
    """
    if host:
        _measure_host(suites, out)
        return
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


def _measure_host(suites: list[str] | None, out: Path | None) -> None:
    from experiments.errors import InputError
    from experiments.prediction.times.calibrate import measure_host, this_machine
    from experiments.prediction.times.host import host_sample_path
    from experiments.system.packages import require_packages

    if suites:
        raise InputError(f"--host measures no suite; allowed: `testbed calibrate --host` without {' '.join(suites)}")
    if out and (out.exists() or out.suffix != ".jsonl"):
        raise InputError(f"--out {out}: allowed with --host: a new file whose name ends with .jsonl")
    require_packages("torch")
    machine = this_machine(" ".join(["testbed", *sys.argv[1:]]))
    path = out or host_sample_path(machine.card)
    ratio = measure_host(path, machine, say)
    say(f"this host needs {ratio:.2f} times as long as the host with the H200 of the package's table; {path}")
