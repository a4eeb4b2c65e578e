"""Functions for row.ipynb: run one row, show its result, and raise an error unless it fits."""

import os
from collections.abc import Iterable
from pathlib import Path
from threading import Thread

from IPython.display import Markdown, display

from experiments.notebooks import tables
from experiments.results.schema import RESULT_FILE, Failure, Result, read_result
from experiments.results.wording import OUTCOME_NAMES, format_number
from experiments.system import warm_start

LAST_LINES_WITHIN_S = 2.0


class DidNotFit(RuntimeError):
    """The row's outcome is not ``fits``."""


def run(spec: str, out: str, worker: str) -> None:
    """Run the row in its own process and print its output while it runs.

    Does not wait for processes that the worker leaves behind and that keep its output open.
    """
    output, write_end = os.pipe()
    process = warm_start.start_process([worker, "--spec", spec, "--out", out], os.environ, write_end)
    os.close(write_end)
    printer = Thread(target=_print_lines, args=(os.fdopen(output),), daemon=True)
    printer.start()
    code = process.wait()
    printer.join(LAST_LINES_WITHIN_S)
    if code:
        print(f"the process that runs the row ended with exit code {code}")


def show(out: str) -> None:
    """Show the result: the outcome and the measurements."""
    result = _result(out)
    display(Markdown("\n\n".join([f"# {OUTCOME_NAMES[result.outcome].upper()}", *measured(result)])))


def measured(result: Result) -> list[str]:
    """Return a row's measurements as blocks of Markdown: outcome, memory at four points, ranks, speed."""
    blocks = [
        result.reason,
        device(result),
        failure(result.failure) if result.failure else "",
        tables.at_points(result.memory.snapshots) if result.memory.snapshots else "",
        tables.ranks(result.ranks) if result.ranks else "",
        tables.speed(result.speed) if result.speed else "",
    ]
    return [block for block in blocks if block]


def require_fit(out: str) -> None:
    """Raise DidNotFit unless the row fits, so that the notebook of a failed row does not look successful."""
    result = _result(out)
    if result.outcome != "fits":
        raise DidNotFit(f"{OUTCOME_NAMES[result.outcome]}: {result.reason}")


def device(result: Result) -> str:
    """Return a description of the row's machine in one line."""
    where = result.device
    memory_gib = f", {where.memory_gib:.1f} GiB" if where.memory_gib else ""
    emulates = f", emulating {result.spec.card}" if result.emulated else ""
    return f"{where.count} x {where.name}{memory_gib}{emulates}; size {result.spec.size}, length {result.spec.length}"


def failure(ended: Failure) -> str:
    """Return where the row failed, in one line."""
    step = f" of step {ended.step}" if ended.step is not None else ""
    rank = f" on rank {ended.rank}" if ended.rank else ""
    requested = f", {format_number(ended.requested_gib)} GiB requested" if ended.requested_gib else ""
    return f"Ended in **{ended.phase}**{step}{rank}{requested}: `{ended.message}`"


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, end="", flush=True)


def _result(out: str) -> Result:
    path = Path(out) / RESULT_FILE
    if not path.exists():
        raise DidNotFit("the worker wrote no result")
    return read_result(path)
