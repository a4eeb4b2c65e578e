"""Functions for row.ipynb: run one row, show its result and verdict, and raise an error unless it fits."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Thread
from typing import Any

from IPython.core.getipython import get_ipython
from IPython.display import Markdown, display

from experiments.errors import InputError
from experiments.notebooks import tables
from experiments.notebooks.parameters import parameters_in, spec_from_parameters
from experiments.results.evaluate import evaluate_row
from experiments.results.schema import RESULT_FILE, SPEC_FILE, Failure, Result, read_result
from experiments.results.wording import OUTCOME_NAMES, format_number, format_size
from experiments.runners.local import row_process
from experiments.runners.local.warm import WORKER_MODULE
from experiments.suites.row_spec import DERIVED_SETTING, RowSpec
from experiments.suites.suite import suite_named
from experiments.system import warm_start
from experiments.system.signals import die_with_parent
from provision.files import read_bytes

LAST_LINES_TIMEOUT_S = 2.0
"""Maximum time to wait for the last lines of the output, after the row's process has ended."""
MANUAL_RUNS = "manual-runs"
"""Folder of the rows that a person runs with this notebook."""


class Stopped(Exception):
    """The notebook stops here. The notebook shows the message in one line, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class DidNotFit(Stopped):
    """The row's outcome is not "fits"."""


class NotAllowed(Stopped):
    """A parameter has a value that is not allowed."""


class Experiment:
    """One row, with the parameters that are among a notebook's variables (``variables``).

    If a runner started the notebook, the row's folder is used, and values that are not parameters come from the
    spec.json in that folder. Otherwise, the folder is manual-runs/SUITE/ROW in the working directory. Raises NotAllowed
    for a parameter that is not allowed.
    """

    def __init__(self, variables: Mapping[str, Any]) -> None:
        folder = os.environ.get(row_process.ROW_VARIABLE)
        shell = get_ipython()
        try:
            parameters = parameters_in(variables, shell.user_ns_hidden if shell else {})
            base = RowSpec.model_validate_json(read_bytes(Path(folder) / SPEC_FILE)) if folder else None
            self.spec = spec_from_parameters(parameters, base)
        except InputError as problem:
            raise NotAllowed(str(problem)) from None
        self.folder = Path(folder) if folder else Path(MANUAL_RUNS, self.spec.suite, self.spec.row).resolve()

    def run(self) -> None:
        """Print the row's parameters, run it in its own process, and print its output while it runs.

        Does not wait for processes that the worker leaves behind and that keep its output open.
        """
        for name, value in (self.spec.parameters | {DERIVED_SETTING: self.spec.settings.global_batch_size}).items():
            print(f"[cfg] {name} = {value}")
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / RESULT_FILE).unlink(missing_ok=True)
        (self.folder / SPEC_FILE).write_text(self.spec.model_dump_json(indent=2))
        worker = os.environ.get(row_process.WORKER_VARIABLE, WORKER_MODULE)
        command = [worker, "--spec", str(self.folder / SPEC_FILE), "--out", str(self.folder)]
        environment = row_process.environment_of_child_processes() | {row_process.ROW_VARIABLE: str(self.folder)}
        output, write_end = os.pipe()
        process = warm_start.start_process(
            warm_start.ROW_SOCKET_VARIABLE, command, environment, write_end, preexec=die_with_parent
        )
        os.close(write_end)
        printer = Thread(target=_print_lines, args=(os.fdopen(output),), daemon=True)
        printer.start()
        try:
            code = process.wait()
        except KeyboardInterrupt:
            row_process.kill(self.folder)
            raise
        printer.join(LAST_LINES_TIMEOUT_S)
        if code:
            print(f"the process that runs the row ended with exit code {code}")

    def show(self) -> None:
        """Show the result: the outcome, the verdict on it, the measurements and the losses."""
        result = self._read_result()
        blocks = [
            f"# {OUTCOME_NAMES[result.outcome].upper()}",
            verdicts_in_markdown(result),
            *measurement_blocks(result),
        ]
        display(Markdown("\n\n".join([*blocks, tables.losses(result.losses)])))

    def require_fit(self) -> None:
        """Raise DidNotFit unless the row fits, so that the notebook of a failed row does not look successful."""
        result = self._read_result()
        if result.outcome != "fits":
            raise DidNotFit(f"{OUTCOME_NAMES[result.outcome]}: {result.reason}")

    def _read_result(self) -> Result:
        path = self.folder / RESULT_FILE
        if not path.exists():
            raise DidNotFit(f"the row's process wrote no {RESULT_FILE}")
        return read_result(path)


def verdicts_in_markdown(result: Result) -> str:
    """Return the verdicts on the lab's statements about this row alone, as Markdown.

    If settings differ from the lab's, or if this machine does not have the lab's suite, the text says so instead.
    """
    spec = result.spec
    try:
        suite = suite_named(spec.suite)
        stated = suite.settings(suite.row(spec.row), spec.card, spec.settings.devices)
    except InputError as problem:
        return f"The statements of the lab cannot be checked here: {problem}"
    before, after = stated.model_dump(mode="json"), spec.settings.model_dump(mode="json")
    if changed := [f"{name} {before[name]} -> {after[name]}" for name in after if before[name] != after[name]]:
        return f"Settings differ from the lab's, so its statements do not apply: {', '.join(changed)}."
    verdicts = tables.verdicts(evaluate_row(suite, result))
    scale = f", {note}" if (note := suite.twin_note(spec.row, spec.card)) else ""
    if not verdicts:
        return "The lab states no result for this row alone."
    return f"**Statements of the lab{scale}**\n\n{verdicts}"


def measurement_blocks(result: Result) -> list[str]:
    """Return a row's measurements as blocks of Markdown: outcome, memory at four points, ranks, speed."""
    blocks = [
        outcome_in_words(result),
        device_in_words(result),
        failure_in_words(result.failure) if result.failure else "",
        tables.memory_at_points(result.memory.snapshots) if result.memory.snapshots else "",
        tables.ranks(result.ranks) if result.ranks else "",
        tables.speed(result.speed) if result.speed else "",
    ]
    return [block for block in blocks if block]


def outcome_in_words(result: Result) -> str:
    """Return how a row ended; for a row that fits, also its peak memory."""
    peak = result.memory.peak_gib
    return f"fits, {format_size(peak)} at the peak" if result.outcome == "fits" and peak else result.reason


def device_in_words(result: Result) -> str:
    """Return a description of the row's machine in one line."""
    where = result.device
    memory_gib = f", {where.memory_gib:.1f} GiB" if where.memory_gib else ""
    emulates = f", emulating {result.spec.card}" if result.emulated else ""
    emulates += ", shared with other rows" if where.shared else ""
    return f"{where.count} x {where.name}{memory_gib}{emulates}; size {result.spec.size}, length {result.spec.length}"


def failure_in_words(failure: Failure) -> str:
    """Return where the row failed, in one line."""
    step = f" of step {failure.step}" if failure.step is not None else ""
    rank = f" on rank {failure.rank}" if failure.rank else ""
    requested = f", {format_number(failure.requested_gib)} GiB requested" if failure.requested_gib else ""
    return f"Ended in **{failure.phase}**{step}{rank}{requested}: `{failure.message}`"


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, end="")
