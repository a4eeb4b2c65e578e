"""What the cells of row.ipynb call: run one row, show what came of it, and fail unless it fits."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from threading import Thread

from IPython.display import Markdown, display

from experiments.judge import ENDINGS, number
from experiments.result import RESULT_FILE, Failure, Result, Snapshot, Speed, read_result

LAST_LINES_WITHIN_S = 2.0
POINTS = ("before forward", "after forward", "after backward", "after optimizer step")
COLUMNS = {
    "params_gib": "parameters",
    "grads_gib": "gradients",
    "optimizer_gib": "optimizer",
    "optimizer_cpu_gib": "optimizer on the host",
    "activations_gib": "activations",
    "allocated_gib": "allocated",
    "peak_gib": "peak",
    "reserved_gib": "reserved",
}


class DidNotFit(RuntimeError):
    """The row ended in any other way than by fitting."""


def run(spec: str, out: str, worker: str) -> None:
    """Run the row in a process of its own and print what it prints, as it comes.

    What the worker leaves behind may hold its output open; that is not waited for.
    """
    command = [sys.executable, "-u", "-m", worker, "--spec", spec, "--out", out]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    printer = Thread(target=_print_lines, args=(process.stdout,), daemon=True)
    printer.start()
    code = process.wait()
    printer.join(LAST_LINES_WITHIN_S)
    if code:
        print(f"the worker ended with code {code}")


def show(out: str) -> None:
    """Show the result as a reader wants it: the outcome, memory at the four points of a step, speed, the failure."""
    result = _result(out)
    blocks = [f"# {ENDINGS[result.outcome].upper()}", result.reason, device(result)]
    if result.failure:
        blocks.append(failure(result.failure))
    if result.memory.snapshots:
        blocks.append(memory(result.memory.snapshots))
    if result.speed:
        blocks.append(speed(result.speed))
    display(Markdown("\n\n".join(filter(None, blocks))))


def require_fit(out: str) -> None:
    """Raise DidNotFit unless the row fits, so that no notebook of a failed row can be taken for a success."""
    result = _result(out)
    if result.outcome != "fits":
        raise DidNotFit(f"{ENDINGS[result.outcome]}: {result.reason}")


def device(result: Result) -> str:
    """What the row ran on, in one line."""
    where = result.device
    memory_gib = f", {where.memory_gib:.1f} GiB" if where.memory_gib else ""
    stands_in = f", standing in for {result.spec.card}" if result.stands_in else ""
    return f"{where.count} x {where.name}{memory_gib}{stands_in}; size {result.spec.size}, length {result.spec.length}"


def failure(ended: Failure) -> str:
    """Where the row ended, in one line."""
    step = f" of step {ended.step}" if ended.step is not None else ""
    asked = f", {number(ended.requested_gib)} GiB asked for" if ended.requested_gib else ""
    return f"Ended in **{ended.phase}**{step}{asked}: `{ended.message}`"


def memory(snapshots: tuple[Snapshot, ...]) -> str:
    """Memory at the four points, of the last step that has each, as a table in GiB."""
    last = {shot.point: shot for shot in snapshots}
    rows = [[point, *(_gib(last[point], field) for field in COLUMNS)] for point in POINTS if point in last]
    return _table(["GiB", *COLUMNS.values()], rows)


def speed(measured: Speed) -> str:
    """Times and rates as a table."""
    figures = {
        "samples/s": number(measured.samples_per_s),
        "s a step": number(measured.step_s),
        "spread": f"{measured.spread:.1%}",
        "TFLOP/s": number(measured.tflops_per_s) if measured.tflops_per_s else "",
        "of the peak": f"{measured.peak_share:.1%}" if measured.peak_share else "",
        "s in all": number(measured.train_s),
    }
    return _table(list(figures), [list(figures.values())])


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, end="", flush=True)


def _result(out: str) -> Result:
    path = Path(out) / RESULT_FILE
    if not path.exists():
        raise DidNotFit("the worker wrote no result")
    return read_result(path)


def _gib(shot: Snapshot, field: str) -> str:
    value = getattr(shot, field)
    return "" if value is None else f"{value:.4g}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
