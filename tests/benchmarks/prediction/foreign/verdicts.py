"""Run training programs by other authors within memory limits just below and above the memory that they need.

    python -m tests.benchmarks.prediction.foreign.verdicts predict FOLDER FILE CARD [CASE ...]
    python -m tests.benchmarks.prediction.foreign.verdicts measure FOLDER PREDICTED FILE [SHARE ...]      on a GPU
    python -m tests.benchmarks.prediction.foreign.verdicts compare PREDICTED FILE TABLE

FOLDER: as for `python -m tests.benchmarks.prediction.foreign`. Without CASE: all programs for one GPU. ``predict``
appends the predicted need of each program to FILE. ``measure`` runs each program up to its third optimizer step with
memory limits that are these shares of the predicted need, and appends whether it got there. A prediction is right if
the program runs out of memory with limits below its need, and fits with limits above it.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmarks.prediction.foreign.__main__ import (
    LINES,
    PredictionError,
    commands,
    predictions,
    run_watched,
)
from tests.benchmarks.prediction.tables import markdown

SHARES = (0.98, 1.02)
"""Memory limits of the runs, relative to the predicted need."""
TOLERANCE = 0.0199
"""Outcomes must be right for limits that differ from the predicted need by at least this share of it."""
OUTCOMES = {"oom": "out of memory with these shares of it", "fits": "fits with", "error": "failed otherwise with"}
AT_ONCE = 12
STARTED_IN_EACH_PROCESS = """
import os, torch
from tests.benchmarks.prediction import unchanged_program
torch.cuda._lazy_call(
    lambda: torch.cuda.set_per_process_memory_fraction(
        float(os.environ["LIMIT_GIB"]) * 2**30 / torch.cuda.get_device_properties(0).total_memory
    )
)
unchanged_program.watch(timed_steps=0)
"""


def predict(folder: Path, file: Path, card: str, wanted: list[str]) -> None:
    """Append the predicted need, GiB, of each wanted case to the file."""

    def need(case: tuple[str, list[str]]) -> dict[str, Any]:
        try:
            (found,) = predictions(folder, case[1], card)
        except PredictionError as error:
            return {"case": case[0], "error": error.args[0]}
        return {"case": case[0], "needed_gib": found.cards[0].needed_gib, "reserved_gib": found.reserved_gib}

    _append(file, need, [case for case in commands(wanted) if wanted or not _starts_ranks(case[1])])


def _starts_ranks(command: list[str]) -> bool:
    return command[0] in ("torchrun", "accelerate")


def measure(folder: Path, predicted: Path, file: Path, shares: Sequence[float]) -> None:
    """Append whether each predicted case fits within each limit, a share of its need."""

    def outcome(one: tuple[str, float]) -> dict[str, Any]:
        case, limit_gib = one
        ((_, command),) = commands([case])
        return {"case": case, "limit_gib": limit_gib, **run_within(folder, command, limit_gib)}

    _append(file, outcome, [(case, need * share) for case, need in _needs(predicted).items() for share in shares])


def _needs(predicted: Path) -> dict[str, float]:
    """Return the predicted need of each case, GiB."""
    lines = map(json.loads, predicted.read_text().splitlines())
    return {line["case"]: line["needed_gib"] for line in lines if "error" not in line}


def run_within(folder: Path, command: list[str], limit_gib: float) -> dict[str, Any]:
    """Run a command up to its third optimizer step. Return its outcome and, if it fits, the GiB that it reserved."""
    try:
        ranks, log = run_watched(folder, command, STARTED_IN_EACH_PROCESS, {"LIMIT_GIB": str(limit_gib)})
    except subprocess.TimeoutExpired:
        return {"outcome": "error", "log": ["no answer in time"]}
    if ranks:
        return {"outcome": "fits", "reserved_gib": ranks[0]["reserved_gib"]}
    if "OutOfMemoryError" in log:
        return {"outcome": "oom"}
    return {"outcome": "error", "log": log.strip().splitlines()[-LINES:]}


def _append(file: Path, answer: Callable[[Any], dict[str, Any]], cases: Iterable[Any]) -> None:
    """Append the answer for each case to the file, in the order of the cases; several are computed at once."""
    with file.open("a") as out, ThreadPoolExecutor(AT_ONCE) as pool:
        for line in pool.map(answer, cases):
            print(line, flush=True)
            out.write(json.dumps(line) + "\n")
            out.flush()


class Run(NamedTuple):
    """A run with a memory limit, relative to the predicted need, and its outcome."""

    share: float
    outcome: str

    @property
    def right(self) -> bool:
        return self.outcome == ("fits" if self.share >= 1 else "oom")

    @property
    def near(self) -> bool:
        return abs(self.share - 1) < TOLERANCE


def compare(predicted: Path, measured: Path, table: Path) -> None:
    """Write a table of the limits by outcome and a line on how many outcomes are as predicted; print that line."""
    needs = _needs(predicted)
    runs: dict[str, list[Run]] = {case: [] for case in needs}
    for line in map(json.loads, measured.read_text().splitlines()):
        runs[line["case"]].append(Run(line["limit_gib"] / needs[line["case"]], line["outcome"]))
    rows = [
        [case, f"{need:.3f}", *(_shares(runs[case], outcome) for outcome in OUTCOMES)] for case, need in needs.items()
    ]
    head = ["program", "need predicted, GiB", *OUTCOMES.values()]
    every = [one for found in runs.values() for one in found]
    summary = "\n".join(
        f"{name}: {sum(one.right for one in found)} of {len(found)} outcomes as predicted"
        for name, found in (
            ("limits 2 % or more from the need", [one for one in every if not one.near]),
            ("closer limits", [one for one in every if one.near]),
        )
    )
    print(summary)
    table.write_text(f"{markdown(head, rows)}\n{summary}\n")


def _shares(runs: Sequence[Run], outcome: str) -> str:
    """Return the limits with this outcome, relative to the need; those that the prediction contradicts in bold."""
    found = sorted(one for one in runs if one.outcome == outcome)
    return ", ".join(f"{one.share:.1%}" if one.right else f"**{one.share:.1%}**" for one in found)


if __name__ == "__main__":
    what, first, *more = sys.argv[1:]
    if what == "predict":
        predict(Path(first), Path(more[0]), more[1], more[2:])
    elif what == "measure":
        measure(Path(first), Path(more[0]), Path(more[1]), [*map(float, more[2:])] or SHARES)
    else:
        compare(Path(first), Path(more[0]), Path(more[1]))
