"""Functions for the labs' notebooks: show and compare the rows of a suite; run rows that have no result."""

import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from IPython.display import Markdown, display

from experiments.notebooks import row as one_row
from experiments.notebooks import tables
from experiments.notebooks.sizing import FRAME_PX, parts_at, stacked_bars
from experiments.prediction.as_result import as_result, evaluate_run, in_words
from experiments.results.evaluate import claim_rows
from experiments.results.predictions import Prediction
from experiments.results.run_folder import RUN_FILE, Run, RunFolder
from experiments.results.schema import Result
from experiments.results.wording import OUTCOMES
from experiments.suites.suite import Claim, suite_named
from experiments.system.files import CODE

COMMAND = (sys.executable, "-u", "-m", "experiments")
AUTO = "auto"
BAR_PX = 26


class Lab:
    """Shows rows of a suite from the runs under ``results``. A row without a result is run first.

    ``choices``: options of `testbed run` by name: card, size, length, weights, input. Only results with the same
    options are shown; 'auto', or an option left out, matches any. Raises InputError for an unknown suite.
    """

    def __init__(self, name: str, *, results: str = "results", **choices: str) -> None:
        self._suite = suite_named(name)
        self._place = Path(results).resolve()
        self.choices = choices

    def show(self, row: str) -> None:
        """Show one row by its id; run it first if it has no stored result."""
        self._suite.row(row)
        folder = self._newest([row])
        if folder is None:
            code = run(self._suite.suite, row, self._place, self.choices)
            folder = self._newest([row])
            if folder is None:
                raise RuntimeError(f"{row} has no result; the command above ended with exit code {code}")
        display(Markdown(row_in_markdown(folder, row)))

    def compare(self, *rows: str) -> None:
        """Show rows side by side: settings, memory, speed, and the claims that compare them.

        Does not run rows. All results are from one run: the run with the most of these rows, or the newest of several
        such runs.
        """
        titles = {row: self._suite.row(row).title for row in rows}
        folder = self._newest(rows)
        results = {row: result for row, result in folder.results().items() if row in rows} if folder else {}
        named = {titles[row]: results[row] for row in rows if row in results}
        if differing := self._settings(titles, results):
            display(Markdown(f"**What differs**\n\n{differing}"))
        if not folder:
            display(Markdown(f"None of these has a result yet: {', '.join(rows)}."))
        else:
            if parts := bars(results):
                display(stacked_bars(parts).update_layout(height=len(parts) * BAR_PX + FRAME_PX))
            display(Markdown("\n\n".join(side_by_side(folder, named, titles))))
        if claims := [claim for claim in self._suite.claims if compares(claim, rows)]:
            display(Markdown(f"**Statements of the lab**\n\n{self._evaluated(claims, folder)}"))

    def _newest(self, rows: Collection[str]) -> RunFolder | None:
        """Return the run with these options and the most of ``rows``, the newest of several; None if there is none."""
        folders = [RunFolder(path.parent) for path in self._place.glob(f"*/{RUN_FILE}")]
        runs = {folder: made for folder in folders if self._suits(made := folder.read_run())}
        there = {folder: len(folder.results().keys() & set(rows)) for folder in runs}
        having = [folder for folder, count in there.items() if count]
        return max(having, key=lambda folder: (there[folder], runs[folder].started_at), default=None)

    def _suits(self, made: Run) -> bool:
        wanted = {"suite": self._suite.suite, **self.choices}
        return all(value in (AUTO, str(getattr(made, key, value))) for key, value in wanted.items())

    def _settings(self, titles: Mapping[str, str], results: Mapping[str, Result]) -> str:
        """Return the settings that differ between the rows: from their results, or for the suite's first card."""
        asked = self.choices.get("card", AUTO)
        sets = {}
        for row_id, title in titles.items():
            row = self._suite.row(row_id)
            card = asked if asked != AUTO else (row.cards or self._suite.cards)[0]
            sets[title] = results[row_id].spec.settings if row_id in results else self._suite.settings(row, card)
        return tables.settings(sets)

    def _evaluated(self, claims: Collection[Claim], folder: RunFolder | None) -> str:
        if folder is None:
            return "\n".join(f"- {claim.says}" for claim in claims)
        return tables.verdicts(
            one
            for one in evaluate_run(self._suite, folder).best.verdicts
            if one.id in {f"claim/{claim.id}" for claim in claims}
        )


def run(name: str, row: str, place: Path, choices: Mapping[str, str]) -> int:
    """Run one row with the command line, print its output while it runs, and return the exit code."""
    options = [part for key, value in choices.items() for part in (f"--{key.replace('_', '-')}", value)]
    command = [*COMMAND, "run", name, "--row", row, "--results", str(place), *options]
    with subprocess.Popen(command, cwd=CODE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
    return process.returncode


def row_in_markdown(folder: RunFolder, row: str) -> str:
    """Return a row's result in Markdown: outcome, device, memory, speed, prediction, and its own statements."""
    results = folder.results()
    suite, result = folder.suite(), results[row]
    blocks = [
        f"### {suite.row(row).title}: {OUTCOMES[result.outcome]}",
        *one_row.measured(result),
        *(f"Predicted at full size on {one.spec.card}: {in_words(one)}" for one in predicted(folder, [row])),
        tables.verdicts(one for one in evaluate_run(suite, folder).best.verdicts if one.rows == (row,)),
    ]
    return "\n\n".join(block for block in blocks if block)


def compares(claim: Claim, rows: Collection[str]) -> bool:
    """Return whether a claim compares several of ``rows`` and no other row."""
    return len(claim_rows(claim)) > 1 and set(claim_rows(claim)) <= set(rows)


def bars(results: Mapping[str, Result]) -> dict[str, dict[str, float]]:
    """Return the parts of each row's memory at each point of a step that it reached, in GiB, for ``stacked_bars``."""
    return {
        f"{row}, {point}": parts_at(shot)
        for row, result in results.items()
        for point, shot in tables.last_at_points(result.memory.snapshots).items()
    }


def side_by_side(folder: RunFolder, results: Mapping[str, Result], titles: Mapping[str, str]) -> list[str]:
    """Return tables of rows by title, in blocks of Markdown: memory, predicted memory, speed, missing results."""
    first = next(iter(results.values()))
    foreseen = {titles[one.spec.row]: as_result(one) for one in predicted(folder, titles)}
    blocks = [
        f"**Memory**, {one_row.device(first)}",
        tables.memory(results),
        f"**Memory predicted at full size** on {first.spec.card}" if foreseen else "",
        tables.memory(foreseen) if foreseen else "",
        f"**Speed**\n\n{speeds}" if (speeds := tables.scaling(results)) else "",
        f"No result yet: {', '.join(lacking)}."
        if (lacking := [one for one in titles.values() if one not in results])
        else "",
    ]
    return [block for block in blocks if block]


def predicted(folder: RunFolder, rows: Collection[str]) -> list[Prediction]:
    """Return the stored predictions of ``rows`` in ``folder``."""
    return [one for one in folder.predictions() if one.spec.row in rows]
