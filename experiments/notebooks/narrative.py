"""What the cells of the narrative notebooks call: show a suite's rows, running those that have not run yet."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from IPython.display import Markdown, display

from experiments.judge import ENDINGS, judge
from experiments.notebooks import row as one_row
from experiments.recipe import suite_named
from experiments.result import Result
from experiments.run import RUN_FILE, Run, RunFolder

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-u", "-m", "experiments")
AUTO = "auto"


def suite(name: str, *, results: str = "results", **choices: str) -> Callable[[str], None]:
    """A function that shows one row of the suite by its id, and runs it first where ``results`` has no result of it.

    ``choices`` are options of `testbed run` by their names: card, size, length, weights, input. A kept result is shown
    where it was made under the same choices; 'auto', or a choice left out, takes any. InputError for an unknown suite.
    """
    suite_named(name)
    place = Path(results).resolve()

    def show(row: str) -> None:
        suite_named(name).row(row)
        folder = newest(place, name, row, choices)
        if folder is None:
            code = run(name, row, place, choices)
            folder = newest(place, name, row, choices)
            if folder is None:
                raise RuntimeError(f"{row} has no result; the command above ended with code {code}")
        display(Markdown(told(folder, row)))

    return show


def newest(place: Path, name: str, row: str, choices: dict[str, str]) -> RunFolder | None:
    """The folder of the newest run of the suite under those choices that has a result of ``row``; None without one."""
    folders = [RunFolder(path.parent) for path in place.glob(f"*/{RUN_FILE}")]
    runs = {folder: run for folder in folders if _suits(run := folder.read_run(), name, choices)}
    there = [folder for folder in runs if row in folder.results()]
    return max(there, key=lambda folder: runs[folder].started_at, default=None)


def run(name: str, row: str, place: Path, choices: dict[str, str]) -> int:
    """Run one row with the command line, printing what it prints as it comes; its exit code."""
    options = [part for key, value in choices.items() for part in (f"--{key.replace('_', '-')}", value)]
    command = [*COMMAND, "run", name, "--row", row, "--results", str(place), *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
    return process.returncode


def told(folder: RunFolder, row: str) -> str:
    """A row's result in Markdown: outcome, device, memory at the four points of a step, speed, verdicts."""
    made, results = folder.read_run(), folder.results()
    recipe, result = suite_named(made.suite), results[row]
    verdicts = [
        f"- **{verdict.status}**: {verdict.says} ({verdict.measured if verdict.status == 'held' else verdict.reason})"
        for verdict in judge(recipe, made, results).verdicts
        if row in verdict.rows
    ]
    blocks = [f"### {recipe.row(row).title}: {ENDINGS[result.outcome]}", *measured(result), "\n".join(verdicts)]
    return "\n\n".join(block for block in blocks if block)


def measured(result: Result) -> list[str]:
    """What was measured of a row, a block of Markdown each."""
    blocks = [result.reason, one_row.device(result)]
    if result.failure:
        blocks.append(one_row.failure(result.failure))
    if result.memory.snapshots:
        blocks.append(one_row.memory(result.memory.snapshots))
    if result.speed:
        blocks.append(one_row.speed(result.speed))
    return blocks


def _suits(made: Run, name: str, choices: dict[str, str]) -> bool:
    return made.suite == name and all(value in (AUTO, getattr(made, key, value)) for key, value in choices.items())
