"""Open the history's database and record runs in it. schema.sql describes the tables."""

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from experiments.errors import InputError
from experiments.prediction.as_result import evaluate_run
from experiments.results.changes.facts import measured_values, outcome_facts, possible_causes
from experiments.results.run_folder import Run, RunFolder
from experiments.results.schema import Result
from experiments.results.verdicts import Evaluation

SCHEMA_FILE = Path(__file__).with_name("schema.sql")
CAUSE_PREFIX = "cause: "
"""Prefix of the names of facts that may explain a change but are no part of the experiment itself, such as versions."""


@contextmanager
def open_history(path: Path, *, create: bool = False) -> Iterator[sqlite3.Connection]:
    """Open the history's database at ``path``. Changes are committed when the body of the with statement ends.

    create: whether to create a missing database. Raises InputError if the database is missing and ``create`` is False,
    or if the file contains no history.
    """
    if not create and not path.exists():
        raise InputError(f"--database {path}: does not exist; `testbed history record RUN_FOLDER` creates it")
    if path.exists() and not path.is_file():
        raise InputError(f"--database {path}: not a regular file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path)
    except (OSError, sqlite3.Error) as error:
        raise InputError(f"--database {path}: cannot be opened ({error})") from None
    connection.row_factory = sqlite3.Row
    try:
        connection.executescript(f"PRAGMA foreign_keys = ON; {SCHEMA_FILE.read_text()}")
        _check_values(connection)
        with connection:
            yield connection
    except sqlite3.DatabaseError as error:
        raise InputError(f"--database {path}: not a database of `testbed history` ({error})") from None
    finally:
        connection.close()


def _check_values(connection: sqlite3.Connection) -> None:
    """Raise DatabaseError if a value is not of its column's type. SQLite itself does not check this."""
    with closing(sqlite3.connect(":memory:")) as empty:
        empty.executescript(SCHEMA_FILE.read_text())
        columns = empty.execute(
            "SELECT one.name, two.name, two.type FROM sqlite_schema AS one JOIN pragma_table_info(one.name) AS two"
            " WHERE one.type = 'table'"
        ).fetchall()
    for table, column, kind in columns:
        query = f"SELECT {column} FROM {table} WHERE typeof({column}) NOT IN ('null', ?, 'integer') LIMIT 1"  # noqa: S608 - names of the schema
        if value := connection.execute(query, [kind.lower()]).fetchone():
            raise sqlite3.DatabaseError(f"{table}.{column} has the value {value[0]!r}, allowed: {kind}")


def record_run(database: sqlite3.Connection, folder: RunFolder) -> bool:
    """Record a run, in place of an earlier state of the same run; return False if this state is recorded already.

    A run without any result is recorded with its verdicts. Raises InputError if ``folder`` is not a run's folder, or
    if one of its files cannot be read.
    """
    run, results = folder.read_run(), folder.results()
    evaluation = evaluate_run(folder.suite(), folder).best
    digest = _digest_of_run(run, results, evaluation)
    if database.execute("SELECT 1 FROM runs WHERE digest = ?", [digest]).fetchone():
        return False
    started_at = max([run.started_at, *(result.started_at for result in results.values())])
    database.execute(
        "DELETE FROM runs WHERE run_id = ? AND started_at = ? AND host = ?", [run.run_id, started_at, run.host]
    )
    columns = (run.run_id, started_at, run.suite, run.card, run.size, run.length, run.gpus_per_node, run.host)
    cursor = database.execute(
        "INSERT INTO runs (run_id, started_at, suite, card, size, length, gpus_per_node, host, git_commit, digest)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [*columns, run.git_commit, digest],
    )
    _insert_rows(database, cursor.lastrowid or 0, run, results)
    _insert_verdicts(database, cursor.lastrowid or 0, evaluation)
    return True


def _digest_of_run(run: Run, results: dict[str, Result], evaluation: Evaluation) -> str:
    texts = [run.model_dump_json(), *(result.model_dump_json() for result in results.values())]
    statuses = [f"{verdict.id} {verdict.status}" for verdict in evaluation.verdicts]
    return hashlib.sha256("\n".join([*texts, *statuses]).encode()).hexdigest()


def _insert_rows(database: sqlite3.Connection, run_number: int, run: Run, results: dict[str, Result]) -> None:
    for row, result in results.items():
        measured = measured_values(result)
        database.executemany(
            "INSERT INTO figures VALUES (?, ?, ?, ?, ?)",
            [(run_number, row, quantity, *value) for quantity, value in measured.items()],
        )
        causes = {CAUSE_PREFIX + name: value for name, value in possible_causes(run, result).items()}
        database.executemany(
            "INSERT INTO facts VALUES (?, ?, ?, ?)",
            [(run_number, row, name, value) for name, value in (outcome_facts(result) | causes).items()],
        )


def _insert_verdicts(database: sqlite3.Connection, run_number: int, evaluation: Evaluation) -> None:
    for verdict in evaluation.verdicts:
        columns = (
            verdict.id,
            verdict.says,
            " ".join(verdict.rows),
            verdict.expected,
            verdict.status,
            verdict.grade,
            verdict.value,
            verdict.reason,
        )
        database.execute("INSERT INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", [run_number, *columns])
