"""Functions for the labs' notebooks: show and compare the rows of a suite; run rows that have no result."""

import ast
import re
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

import yaml
from IPython.display import Markdown, display

from experiments.errors import unknown_name_error
from experiments.notebooks import row as one_row
from experiments.notebooks import rungs, tables
from experiments.notebooks.sizing import parts_at, stacked_bars
from experiments.prediction.as_result import convert_to_result, describe_outcome, evaluate_run
from experiments.results.evaluate import claim_rows
from experiments.results.predictions import Prediction
from experiments.results.run_folder import RUN_FILE, Run, RunFolder
from experiments.results.schema import Result
from experiments.results.wording import OUTCOME_NAMES
from experiments.suites.suite import Claim, Row, suite_named
from experiments.system.files import CODE_FOLDER

COMMAND = (sys.executable, "-u", "-m", "experiments")
AUTO = "auto"
NOTE_ON_TINY_MODELS = (
    " The text describes full size. Tiny models go through the same steps, with other sizes and times:"
    " compare the text with what is predicted at full size."
)
FOLDER_OPTION = r" --results \S+"
PINNED_OPTIONS = ("card", "size", "length", "weights", "input", "run_id")
"""Options that `testbed run` needs with the values of a run to continue that run."""
EVIDENCE = CODE_FOLDER / "experiments" / "evidence"
ENGINES = CODE_FOLDER / "experiments" / "training" / "engines"


class Lab:
    """Shows rows of a suite from one run: a stored one, or one of your own.

    run: the name of a run in this project or under ``results``, whose rows are shown and not run. If it is empty, your
    own newest run under ``results`` with the same choices is shown, and rows without a result run first.
    choices: options of `testbed run` by name: card, size, length, weights, input; 'auto', or an option that is left
    out, matches any value.

    Raises InputError for an unknown suite or run.
    """

    def __init__(self, name: str, *, run: str = "", results: str = "results", **choices: str) -> None:
        self._suite = suite_named(name)
        self._results = Path(results).expanduser().resolve()
        self.choices = choices
        self._shows_stored_run = bool(run)
        self._folder = folder_named(run, self._results) if run else None

    def introduce(self) -> None:
        """Show which run all cells use, with its machine, date and command."""
        folder = self._folder or self._best_matching_run([row.id for row in self._suite.rows])
        if folder is None:
            text = f"No run of your own under `{self._results}` yet: the cells run the rows."
        else:
            record, number = folder.read_run(), len(folder.results())
            rest = "Nothing is run." if self._shows_stored_run else "Rows without a result are run."
            rest += NOTE_ON_TINY_MODELS if record.size == "tiny" else ""
            text = (
                f"**All results are of one run, `{record.run_id}`**: {number} rows for {record.card},"
                f" size {record.size}, on {record.host}, {record.started_at[:10]}. {rest}"
                f"\n\n    {re.sub(FOLDER_OPTION, '', record.command)}"
            )
        display(Markdown(text))

    def show(self, row: str) -> None:
        """Show the definition and the result of one row. In your own run, a row without a result is run first."""
        stated = self._suite.row(row)
        folder = self._choose_run([row])
        if not (folder and row in folder.results()) and not self._shows_stored_run:
            code = run(self._suite.suite, row, self._results, self._options(folder))
            folder = self._choose_run([row])
            if folder is None or row not in folder.results():
                raise RuntimeError(f"{row} has no result; the command above ended with exit code {code}")
        engine = self._suite.settings(stated, (stated.cards or self._suite.cards)[0]).engine
        assert folder
        display(Markdown(f"{row_in_markdown(folder, row)}\n\n{row_definition(stated, engine)}"))

    def compare(self, *rows: str) -> None:
        """Show rows side by side: settings, memory, speed, and the claims that compare them.

        Does not run rows.
        """
        titles = {row: self._suite.row(row).title for row in rows}
        folder = self._choose_run(rows)
        results = {row: result for row, result in folder.results().items() if row in rows} if folder else {}
        named = {titles[row]: results[row] for row in rows if row in results}
        if differing := self._settings(titles, results):
            display(Markdown(f"**What differs**\n\n{differing}"))
        if folder and not results and stored_predictions(folder, rows):
            display(Markdown(f"**Memory predicted at full size**\n\n{predicted_memory(folder, titles)}"))
        elif not folder or not results:
            display(Markdown(f"None of these has a result yet: {', '.join(rows)}."))
        else:
            if parts := memory_bars(results):
                display(stacked_bars(parts))
            display(Markdown("\n\n".join(comparison_blocks(folder, named, titles))))
        if claims := [claim for claim in self._suite.claims if compares(claim, rows)]:
            display(Markdown(f"**Statements of the lab**\n\n{self._verdict_table(claims, folder)}"))

    def changes(self) -> None:
        """Show a table of rows and their variants: the settings that differ, memory, speed and cost.

        Does not run rows.
        """
        folder = self._choose_run([row.id for row in self._suite.rows])
        table = tables.changes_table(self._suite, folder.results()) if folder else ""
        display(Markdown(table or "No variant of a row has a result yet."))

    def ladder(self, *rows: str) -> None:
        """Show the samples per second of rows as bars, and a table of speed, memory and losses.

        The first row is as taught. Does not run rows. Without times on a GPU, there are no bars.
        """
        folder = self._choose_run(rows)
        results = folder.results() if folder else {}
        found = {self._suite.row(row).title: results[row] for row in rows if row in results}
        if chart := rungs.speed_bars(found):
            display(chart)
        display(Markdown(rungs.rungs_table(found) or f"None of these has a result yet: {', '.join(rows)}."))

    def _choose_run(self, rows: Collection[str]) -> RunFolder | None:
        """Return the run that all cells show: the first that matches the rows of a cell; None if none matches yet."""
        self._folder = self._folder or self._best_matching_run(rows)
        return self._folder

    def _options(self, folder: RunFolder | None) -> dict[str, str]:
        """Return the options with which `testbed run` continues the run in ``folder``, or begins a new run."""
        if folder is None:
            return self.choices
        record = folder.read_run()
        return self.choices | {name: str(getattr(record, name)) for name in PINNED_OPTIONS}

    def _best_matching_run(self, rows: Collection[str]) -> RunFolder | None:
        """Return the newest of the runs with these options and the most results for ``rows``; None without any."""
        folders = [RunFolder(path.parent) for path in self._results.glob(f"*/{RUN_FILE}")]
        runs = {folder: record for folder in folders if self._matches_options(record := folder.read_run())}
        counts = {folder: len(folder.results().keys() & set(rows)) for folder in runs}
        candidates = [folder for folder, count in counts.items() if count]
        return max(candidates, key=lambda folder: (counts[folder], runs[folder].started_at), default=None)

    def _matches_options(self, record: Run) -> bool:
        wanted = {"suite": self._suite.suite, **self.choices}
        return all(value in (AUTO, str(getattr(record, key, value))) for key, value in wanted.items())

    def _settings(self, titles: Mapping[str, str], results: Mapping[str, Result]) -> str:
        """Return a table of the settings that differ between rows, from their results, else from the suite."""
        chosen_card = self.choices.get("card", AUTO)
        settings = {}
        for row_id, title in titles.items():
            row = self._suite.row(row_id)
            card = chosen_card if chosen_card != AUTO else (row.cards or self._suite.cards)[0]
            settings[title] = results[row_id].spec.settings if row_id in results else self._suite.settings(row, card)
        return tables.settings(settings)

    def _verdict_table(self, claims: Collection[Claim], folder: RunFolder | None) -> str:
        known = {} if folder is None else {one.id: one for one in evaluate_run(self._suite, folder).best.verdicts}
        own = {claim: known.get(claim.verdict_id) for claim in claims}
        without = [f"- {claim.says}" for claim, verdict in own.items() if verdict is None]
        return "\n".join(filter(None, (tables.verdicts(filter(None, own.values())), *without)))


def folder_named(name: str, results: Path) -> RunFolder:
    """Return the run of that name, among the stored runs of this project or under ``results``.

    Raises InputError if no run has the name.
    """
    for path in (EVIDENCE / name, results / name):
        if (path / RUN_FILE).is_file():
            return RunFolder(path)
    raise unknown_name_error("run", name, sorted(path.parent.name for path in EVIDENCE.glob(f"*/{RUN_FILE}")))


def row_definition(row: Row, engine: str) -> str:
    """Return a row as its suite states it, and the function that trains it, as a collapsed section of Markdown."""
    stated = yaml.safe_dump(row.model_dump(mode="json", exclude_unset=True), sort_keys=False, width=100)
    source = (ENGINES / f"{engine}.py").read_text()
    functions = [one for one in ast.parse(source).body if isinstance(one, ast.FunctionDef) and one.name == "train"]
    code = "\n\n".join(ast.get_source_segment(source, one) or "" for one in functions)
    return (
        "<details><summary>Settings and code of this row</summary>\n\n"
        f"```yaml\n{stated}```\n\nThe engine `{engine}`:\n\n```python\n{code}\n```\n\n</details>"
    )


def run(suite: str, row: str, results: Path, choices: Mapping[str, str]) -> int:
    """Run one row with the command line, print its output while it runs, and return the exit code."""
    options = [part for key, value in choices.items() for part in (f"--{key.replace('_', '-')}", value)]
    command = [*COMMAND, "run", suite, "--row", row, "--results", str(results), *options]
    with subprocess.Popen(
        command, cwd=CODE_FOLDER, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
    return process.returncode


def row_in_markdown(folder: RunFolder, row: str) -> str:
    """Return a row's result in Markdown: outcome, device, memory, speed, prediction, and its own statements."""
    suite, result = folder.suite(), folder.results().get(row)
    title, predictions = suite.row(row).title, stored_predictions(folder, [row])
    full_size = [f"Predicted at full size on {one.spec.card}: {describe_outcome(one)}" for one in predictions]
    points = [predicted_points_table(one) for one in predictions if one.memory.snapshots]
    measured = one_row.measurement_blocks(result) if result else []
    if result is None:
        outcome = (
            f"{_outcome_at_full_size(predictions[0])}, predicted at full size" if predictions else "not in this run"
        )
        lines = [*full_size, *points]
    elif result.spec.size == "tiny" and predictions:
        outcome = f"{_outcome_at_full_size(predictions[0])} at full size; miniature: {OUTCOME_NAMES[result.outcome]}"
        lines = [*full_size, *points, "**In miniature**", *measured]
    else:
        outcome, lines = OUTCOME_NAMES[result.outcome], [*measured, *full_size]
    blocks = [
        f"### {title}: {outcome}",
        *lines,
        tables.verdicts(one for one in evaluate_run(suite, folder).best.verdicts if one.rows == (row,)),
    ]
    return "\n\n".join(block for block in blocks if block)


def _outcome_at_full_size(prediction: Prediction) -> str:
    return OUTCOME_NAMES.get(prediction.predicted_outcome, prediction.predicted_outcome)


def predicted_points_table(prediction: Prediction) -> str:
    """Return the predicted memory at the four points of the last step as a table, with a caption."""
    limit = "" if prediction.likely_outcome == "fits" else ", if the card had enough memory"
    return f"Memory at four points of a step{limit}:\n\n{tables.memory_at_points(prediction.memory.snapshots)}"


def compares(claim: Claim, rows: Collection[str]) -> bool:
    """Return whether a claim compares several of ``rows`` and no other row."""
    return len(claim_rows(claim)) > 1 and set(claim_rows(claim)) <= set(rows)


def memory_bars(results: Mapping[str, Result]) -> dict[str, dict[str, float]]:
    """Return the parts of memory, GiB, for each row and each point of a step that the row reached.

    The keys are the labels of the bars and the names of the parts, as ``stacked_bars`` needs them.
    """
    return {
        f"{row}, {point}": parts_at(shot)
        for row, result in results.items()
        for point, shot in tables.last_at_points(result.memory.snapshots).items()
    }


def comparison_blocks(folder: RunFolder, results: Mapping[str, Result], titles: Mapping[str, str]) -> list[str]:
    """Return tables that compare rows, as blocks of Markdown: memory, predicted memory, speed, missing results.

    results: by title of the row. titles: by id of the row.
    """
    first = next(iter(results.values()))
    predicted_table = predicted_memory(folder, titles)
    blocks = [
        f"**Memory**, {one_row.device_in_words(first)}",
        tables.memory(results),
        f"**Memory predicted at full size** on {first.spec.card}" if predicted_table else "",
        predicted_table,
        f"**Speed**\n\n{speeds}" if (speeds := tables.scaling(results)) else "",
        f"No result yet: {', '.join(lacking)}."
        if (lacking := [one for one in titles.values() if one not in results])
        else "",
    ]
    return [block for block in blocks if block]


def predicted_memory(folder: RunFolder, titles: Mapping[str, str]) -> str:
    """Return a table of the predicted memory of rows; empty if nothing is predicted. titles: by id of the row."""
    found = {titles[one.spec.row]: convert_to_result(one) for one in stored_predictions(folder, titles)}
    return tables.memory(found) if found else ""


def stored_predictions(folder: RunFolder, rows: Collection[str]) -> list[Prediction]:
    """Return the stored predictions of ``rows`` in ``folder``."""
    return [one for one in folder.predictions() if one.spec.row in rows]
