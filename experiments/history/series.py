"""Read series of comparable runs, oldest first, with the measured values, facts and verdicts of each run."""

import sqlite3
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from experiments.errors import InputError, unknown_name_error
from experiments.history.database import CAUSE_PREFIX, open_history
from experiments.results.changes.changed import ValueKey
from experiments.results.changes.facts import MeasuredValue
from experiments.results.run_folder import RunFolder
from experiments.results.schema import FORMER_OUTCOMES


class RecordedStatement(NamedTuple):
    """A statement in one run: its sentence, its rows, the values for which it passes, and its status.

    grade: the grade of the evidence (measured, emulated, predicted or miniature); None: neither pass nor fail.
    """

    says: str
    rows: tuple[str, ...]
    expected: str
    status: str
    grade: str | None


class RecordedRun(NamedTuple):
    """A run in the history.

    measured, facts, causes: by row and name of the quantity, fact or cause. verdicts: by id of the statement.
    """

    run_id: str
    started_at: str
    commit: str
    measured: dict[ValueKey, MeasuredValue]
    facts: dict[ValueKey, str]
    causes: dict[ValueKey, str]
    verdicts: dict[str, RecordedStatement]

    @property
    def name(self) -> str:
        """Return a text that identifies the run: its start and its id."""
        return f"{self.started_at[:16].replace('T', ' ')} {self.run_id}"

    def status(self, id_: str) -> str:
        """Return the status of a statement; empty if the run lacks it."""
        return self.verdicts[id_].status if id_ in self.verdicts else ""


class Series(NamedTuple):
    """All runs of a suite with the same card, size, length and limit of GPUs, oldest first."""

    suite: str
    card: str
    size: str
    length: str
    gpus_per_node: int | None
    runs: list[RecordedRun]

    @property
    def title(self) -> str:
        """Return the suite and the options that the runs share, as text."""
        limit = f", {self.gpus_per_node} GPUs per node" if self.gpus_per_node else ""
        return f"{self.suite} on {self.card}, size {self.size}, length {self.length}{limit}"

    def values(self, key: ValueKey) -> list[float | None]:
        """Return the value of one quantity of one row in each run; None for a run without this value."""
        return [run.measured[key].value if key in run.measured else None for run in self.runs]

    @property
    def keys(self) -> list[ValueKey]:
        """Return the row and the quantity of each value that any run has, in the order in which they occur."""
        return list(dict.fromkeys(key for run in self.runs for key in run.measured))

    @property
    def statuses_by_statement(self) -> list[tuple[str, list[str]]]:
        """Return each statement that any run evaluated, with its status in each run; "" for a run without it."""
        says = {id_: one.says for run in self.runs for id_, one in run.verdicts.items()}
        statuses = [(text, [run.status(id_) for run in self.runs]) for id_, text in says.items()]
        return [(text, in_runs) for text, in_runs in statuses if set(in_runs) - {"", "not evaluated"}]


def read_series(database: sqlite3.Connection, suite: str | None = None, row: str | None = None) -> list[Series]:
    """Return the series of ``suite``; None: of all suites. row: the only row to read; None: all rows.

    Raises InputError for a suite or a row that the history does not have.
    """
    known = [record["suite"] for record in database.execute("SELECT DISTINCT suite FROM runs ORDER BY suite")]
    if suite is not None and suite not in known:
        raise unknown_name_error("suite of the history", suite, known)
    groups: dict[tuple[str, str, str, str, int | None], list[RecordedRun]] = defaultdict(list)
    query = "SELECT * FROM runs WHERE ? IS NULL OR suite = ? ORDER BY started_at, run"
    for record in database.execute(query, [suite, suite]).fetchall():
        key = (record["suite"], record["card"], record["size"], record["length"], record["gpus_per_node"])
        groups[key].append(_read_run(database, record, row))
    all_series = [Series(*key, runs) for key, runs in groups.items()]
    if row is not None:
        all_series = [series for series in all_series if any(run.facts for run in series.runs)]
        if not all_series:
            raise InputError(f"{suite}/{row}: the history has no result of this row")
    return all_series


def recorded_values(path: Path, folder: RunFolder) -> list[dict[ValueKey, MeasuredValue]]:
    """Return the measured values of each recorded run that is comparable with the run in ``folder``.

    Comparable runs have the same suite, card, size, length and limit of GPUs. Without a database, the list is empty.

    Raises InputError if ``folder`` is not a run's folder, or the file is not a database of `testbed history`.
    """
    if not path.is_file():
        return []
    run = folder.read_run()
    with open_history(path) as database:
        all_series = read_series(database)
    alike = (run.suite, run.card, run.size, run.length, run.gpus_per_node)
    return [one.measured for series in all_series if series[:5] == alike for one in series.runs]


def _read_run(database: sqlite3.Connection, record: sqlite3.Row, row: str | None) -> RecordedRun:
    parameters = [record["run"], row, row]
    where = "WHERE run = ? AND (? IS NULL OR row = ?)"
    measured = database.execute(f"SELECT row, quantity, value, spread FROM figures {where}", parameters)  # noqa: S608 - constants
    facts = database.execute(f"SELECT row, name, value FROM facts {where}", parameters).fetchall()  # noqa: S608 - constants
    verdicts = database.execute(
        "SELECT statement, says, rows, expected, status, grade FROM verdicts WHERE run = ?", parameters[:1]
    )
    statements = {id_: RecordedStatement(says, tuple(rows.split()), *rest) for id_, says, rows, *rest in verdicts}
    return RecordedRun(
        run_id=record["run_id"],
        started_at=record["started_at"],
        commit=record["git_commit"] or "",
        measured={(row_id, name): MeasuredValue(value, spread) for row_id, name, value, spread in measured},
        facts={
            (row_id, name): FORMER_OUTCOMES.get(value, value) if name == "outcome" else value
            for row_id, name, value in facts
            if not name.startswith(CAUSE_PREFIX)
        },
        causes={
            (row_id, name.removeprefix(CAUSE_PREFIX)): value
            for row_id, name, value in facts
            if name.startswith(CAUSE_PREFIX)
        },
        verdicts={id_: one for id_, one in statements.items() if row is None or row in one.rows},
    )
