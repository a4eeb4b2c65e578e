"""The database of the history, the command that fills and shows it, its page and its CSV."""

import csv
import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from experiments.cli.app import main
from experiments.cli.tables.history import sparkline
from experiments.history.database import SCHEMA_FILE, open_history
from experiments.history.series import read_series
from tests.support.results.evidence import EVIDENCE, RUNS
from tests.support.results.semesters import RUN, repeat_run


@pytest.fixture
def testbed(tmp_path, capsys, monkeypatch):
    """Run a command in an empty folder; its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return run


def row_counts(database: Path) -> dict[str, int]:
    with open_history(database) as connection:
        tables = ("runs", "figures", "facts", "verdicts")
        return {table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}


def test_every_run_of_the_stored_evidence_is_recorded_once(testbed, tmp_path):
    assert testbed("history", "record", EVIDENCE)[0] == 0
    once = row_counts(tmp_path / "results/history.db")
    assert once["runs"] == len(RUNS)
    code, out, _ = testbed("history", "record", EVIDENCE)
    assert (code, out.count(": already recorded")) == (0, len(RUNS))
    assert row_counts(tmp_path / "results/history.db") == once


def test_the_link_latest_can_be_recorded_in_place_of_the_folder_of_a_run(testbed, tmp_path):
    (tmp_path / "latest").symlink_to(RUN)
    assert testbed("history", "record", "latest")[0] == 0
    assert row_counts(tmp_path / "results/history.db")["runs"] == 1


def test_a_resumed_run_replaces_its_earlier_record(testbed, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(RUN, run)
    lines = (run / "results.jsonl").read_text().splitlines()
    (run / "results.jsonl").write_text("\n".join(lines[1:]))
    testbed("history", "record", run)
    before = row_counts(tmp_path / "results/history.db")
    (run / "results.jsonl").write_text("\n".join(lines))
    testbed("history", "record", run)
    after = row_counts(tmp_path / "results/history.db")
    assert (before["runs"], after["runs"]) == (1, 1)
    assert after["figures"] > before["figures"]


def test_a_recorded_outcome_with_the_name_of_an_earlier_version_is_read_with_the_current_name(testbed, tmp_path):
    testbed("history", "record", RUN)
    with open_history(tmp_path / "results/history.db") as database:
        database.execute("UPDATE facts SET value = 'refused' WHERE name = 'outcome'")
        (run,) = (run for series in read_series(database) for run in series.runs)
    assert {value for (_, name), value in run.facts.items() if name == "outcome"} == {"rejected"}


def test_a_value_over_time_can_be_queried_in_sql(testbed, tmp_path):
    for week in range(3):
        testbed("history", "record", repeat_run(tmp_path, week).path)
    query = "SELECT value FROM trends WHERE row = 'xxl-sgd' AND quantity = 'peak_gib'"
    with sqlite3.connect(tmp_path / "results/history.db") as database:
        assert len(database.execute(query).fetchall()) == 3


def test_every_column_of_the_tables_is_described():
    lines = [line for line in SCHEMA_FILE.read_text().splitlines() if line.startswith("    ")]
    columns = [line for line in lines if line.split()[0].islower() and line.split()[1] in ("TEXT", "REAL", "INTEGER")]
    obvious = {"run", "row", "quantity", "value", "name", "suite", "statement", "reason"}
    assert [line for line in columns if "--" not in line and line.split()[0] not in obvious] == []


def test_changes_verdicts_and_measured_values_are_shown(testbed, tmp_path):
    def worse(result):
        result["memory"]["peak_gib"] *= 1.02
        result["versions"]["torch"] = "2.12.0"

    for week in range(4):
        testbed("history", "record", repeat_run(tmp_path, week, worse if week == 3 else None).path)
    code, out, _ = testbed("history", "single_gpu_blip2/xxl-sgd", "--fail-on-change")
    assert code == 1
    assert "xxl-sgd: peak memory 77.5 GiB → 79 GiB (+2 %)" in out
    assert "what else differs: torch 2.11.0 → 2.12.0" in out
    assert "▁▁▁█" in out
    code, out, _ = testbed("history", "--json")
    (series,) = json.loads(out)
    assert (code, [one["differs"][0]["what"] for one in series["changes"]]) == (0, ["torch"])


def test_changes_come_first_and_each_row_has_one_line(testbed, tmp_path):
    def worse(result):
        result["memory"]["peak_gib"] *= 1.02

    steady = EVIDENCE / "multi_gpu_litgpt-v100_32gb-full-verdict"
    testbed("history", "record", steady)
    for week in range(4):
        testbed("history", "record", repeat_run(tmp_path, week, worse if week == 3 else None).path)
    _, out, _ = testbed("history")
    lines = out.splitlines()
    assert lines[0].startswith("single_gpu_blip2 on ")
    assert lines[1].startswith("changed in")
    assert out.index("no earlier run to compare with") > out.index("changed in")
    (row,) = [line for line in lines if line.startswith("xxl-sgd ")]
    assert "▁▁▁█" in row.split()
    assert " pass; --all shows each" in out
    assert "SGD keeps no optimizer state." not in out
    _, everything, _ = testbed("history", "--all")
    assert "SGD keeps no optimizer state." in everything
    assert len([line for line in everything.splitlines() if line.startswith("xxl-sgd ")]) == 5


def test_the_csv_has_a_line_for_each_measured_value(testbed, tmp_path):
    testbed("history", "record", RUN)
    assert testbed("history", "--csv", "values.csv")[0] == 0
    with (tmp_path / "values.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == row_counts(tmp_path / "results/history.db")["figures"]
    assert {line["suite"] for line in lines} == {"single_gpu_blip2"}


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("history",), "--database results/history.db: does not exist"),
        (("history", "record"), "history record: needs the folder of a run"),
        (("history", "record", "missing"), "missing: no run's folder here"),
        (("history", "a", "b"), "a b: allowed: one SUITE or SUITE/ROW"),
    ],
)
def test_invalid_input_is_named(testbed, words, problem):
    code, _, err = testbed(*words)
    assert code == 2
    assert problem in " ".join(err.split())


@pytest.mark.parametrize(
    ("words", "problem"), [(["blip"], "blip"), (["single_gpu_blip2/nothing"], "no result of this")]
)
def test_an_unknown_suite_or_row_is_named(testbed, words, problem):
    testbed("history", "record", RUN)
    code, _, err = testbed("history", *words)
    assert code == 2
    assert problem in err


def test_a_file_that_is_not_a_database_is_named(testbed, tmp_path):
    (tmp_path / "text.db").write_text("no database" * 100)
    code, _, err = testbed("history", "--database", "text.db")
    assert (code, err.count("\n")) == (2, 1)
    assert "--database text.db: not a database of `testbed history`" in err


def test_a_sparkline_has_a_character_for_each_value():
    assert sparkline([1.0, None, 2.0, 3.0]) == "▁·▅█"
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert sparkline([]) == ""
    assert sparkline([1.0] * 30 + [2.0]) == "▁" * 11 + "█"
