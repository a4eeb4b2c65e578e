"""A database of another person with values that this program does not write."""

import os
import sqlite3

import pytest

from experiments.cli.app import main
from tests.support.results.evidence import EVIDENCE

RUN = str(EVIDENCE / "single_gpu_blip2-a100_80gb-full-verdict")
COMPARE = "compare RUN RUN --database @"


@pytest.fixture
def database(tmp_path, capsys):
    path = tmp_path / "history.db"
    assert main(["history", "record", RUN, "--database", str(path)]) == 0
    capsys.readouterr()
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("UPDATE figures SET value = 'abc'", "figures.value has the value 'abc', allowed: REAL"),
        ("UPDATE runs SET started_at = x'ff'", "runs.started_at has the value"),
        ("DROP TABLE figures; CREATE TABLE figures (a)", "no such column"),
        ("UPDATE verdicts SET status = x'00'", "verdicts.status"),
    ],
)
@pytest.mark.parametrize(
    "line", ["history --database @", "history record RUN --database @", "compare RUN RUN --database @"]
)
def test_database_values_of_a_wrong_type_are_named_in_one_line(database, capsys, line, change, message):
    with sqlite3.connect(database) as connection:
        connection.executescript(change)
    assert main([word.replace("@", str(database)).replace("RUN", RUN) for word in line.split()]) == 2
    error = capsys.readouterr().err
    assert f"--database {database}: not a database of `testbed history` (" in error
    assert message in error
    assert error.count("\n") == 1


def test_a_truncated_database_is_named_in_one_line(database, capsys):
    os.truncate(database, 5000)
    assert main(["history", "--database", str(database)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
