"""Injected regressions are found and named in the first run that has them; unchanged runs raise no alarm."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.history.changes import RunChanges, run_changes
from experiments.history.database import open_history, record_run
from experiments.history.series import read_series
from experiments.results.changes.changed import RunChange, change_sentences
from experiments.results.changes.noise import segment_starts
from tests.support.results.semesters import repeat_run, slow_down

BEFORE = 6
ROW = "xxl-sgd"
STEADY_ROW = "larger-model"
"""A row whose steps vary by less than 2%."""
Result = dict[str, Any]


def change_row(change: Callable[[Result], None], row: str = ROW) -> Callable[[Result], None]:
    """Return a change of one row only."""
    return lambda result: change(result) if result["spec"]["row"] == row else None


def with_tied_head(result: Result) -> None:
    head = 32128 * 4096
    result["parameters"] -= head
    result["trainable_parameters"] -= head
    for shot in result["memory"]["snapshots"]:
        shot["params_gib"] -= 2 * head / 2**30


def with_larger_value(name: str, times: float) -> Callable[[Result], None]:
    def change(result: Result) -> None:
        result["memory"][name] *= times

    return change


def with_larger_snapshots(name: str, times: float) -> Callable[[Result], None]:
    def change(result: Result) -> None:
        for shot in result["memory"]["snapshots"]:
            shot[name] *= times

    return change


def with_setting(name: str, value: object) -> Callable[[Result], None]:
    return lambda result: result["spec"]["settings"].update({name: value})


def with_removed_argument(result: Result) -> None:
    result.update(outcome="error", reason="TypeError: unexpected keyword argument", speed=None, losses=[])
    result["failure"] = {"phase": "load", "step": None, "kind": "TypeError", "message": "unexpected keyword"}


def with_out_of_memory(result: Result) -> None:
    result.update(outcome="oom", reason="out of GPU memory", speed=None)
    result["failure"] = {"phase": "backward", "step": 1, "kind": "OutOfMemoryError", "message": "out of memory"}


def with_other_data_order(result: Result) -> None:
    result["losses"] = result["losses"][::-1]


def without_memory_cap(result: Result) -> None:
    result["device"]["cap_gib"] = None


def with_frozen_weights(result: Result) -> None:
    result["trainable_parameters"] //= 2


def with_longer_texts(result: Result) -> None:
    result["max_tokens"] = (result["max_tokens"] or 0) + 8


def with_other_loss(result: Result) -> None:
    result["losses"] = [loss * 1.05 for loss in result["losses"]]


def with_slower_steps(result: Result) -> None:
    if result["speed"]:
        slow_down(result, 1.1)


def with_much_slower_steps(result: Result) -> None:
    if result["speed"]:
        slow_down(result, 1.2)


INJECTED: dict[str, tuple[Callable[[Result], None], str]] = {
    "a tied head": (change_row(with_tied_head), f"{ROW}: number of parameters"),
    "2 % more peak": (change_row(with_larger_value("peak_gib", 1.02)), f"{ROW}: peak memory"),
    "2 % less peak": (change_row(with_larger_value("peak_gib", 0.98)), f"{ROW}: peak memory"),
    "1 % more reserved": (change_row(with_larger_value("reserved_gib", 1.01)), f"{ROW}: reserved memory"),
    "10 % slower steps of all rows": (with_slower_steps, ": step time"),
    "20 % slower steps of one row": (change_row(with_much_slower_steps, STEADY_ROW), f"{STEADY_ROW}: step time"),
    "a removed argument": (change_row(with_removed_argument), f"{ROW}: outcome fits → error"),
    "a changed default": (change_row(with_setting("weight_decay", 0.01)), f"{ROW}: weight_decay"),
    "another optimizer": (change_row(with_setting("optimizer", "adamw")), f"{ROW}: optimizer sgd"),
    "another learning rate": (change_row(with_setting("lr", 0.001)), f"{ROW}: lr"),
    "another seed": (change_row(with_setting("seed", 7)), f"{ROW}: seed"),
    "another order of the data": (with_other_data_order, ": loss of the last batch"),
    "a lost memory limit": (without_memory_cap, f"{ROW}: memory limit"),
    "frozen layers": (change_row(with_frozen_weights), f"{ROW}: number of trainable parameters"),
    "longer texts": (change_row(with_longer_texts), f"{ROW}: longest text"),
    "another loss": (change_row(with_other_loss), f"{ROW}: loss of the last"),
    "out of memory": (change_row(with_out_of_memory), f"{ROW}: outcome fits → out of GPU memory"),
    "gradients twice": (change_row(with_larger_snapshots("grads_gib", 2)), f"{ROW}: gradients"),
    "activations kept": (change_row(with_larger_snapshots("activations_gib", 1.5)), f"{ROW}: activations"),
    "more allocated": (change_row(with_larger_snapshots("allocated_gib", 1.03)), f"{ROW}: memory after the forward"),
}


def changes_found(folder: Path, weeks: int, change: Callable[[Result], None] | None = None) -> list[RunChanges]:
    """Return the changes in a history of ``weeks`` unchanged runs, and one more with ``change``."""
    with open_history(folder / "history.db", create=True) as database:
        for week in range(weeks):
            record_run(database, repeat_run(folder, week))
        if change:
            record_run(database, repeat_run(folder, weeks, change))
        (series,) = read_series(database)
    return run_changes(series)


@pytest.fixture(scope="module")
def unchanged_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of BEFORE unchanged runs."""
    folder = tmp_path_factory.mktemp("unchanged")
    changes_found(folder, BEFORE)
    return folder / "history.db"


@pytest.mark.parametrize("name", INJECTED)
def test_an_injected_regression_is_reported_with_the_first_run_that_has_it(name, unchanged_runs, tmp_path):
    change, named = INJECTED[name]
    database = tmp_path / "history.db"
    database.write_bytes(unchanged_runs.read_bytes())
    with open_history(database) as connection:
        record_run(connection, repeat_run(tmp_path, BEFORE, change))
        (series,) = read_series(connection)
    (found,) = run_changes(series)
    assert found.run is series.runs[-1]
    assert [one.sentence for one in found.changed if named in one.sentence]


def test_when_more_runs_follow_a_change_no_second_change_is_reported(tmp_path):
    with open_history(tmp_path / "history.db", create=True) as database:
        for week in range(10):
            record_run(
                database,
                repeat_run(tmp_path, week, change_row(with_larger_value("peak_gib", 1.02)) if week >= 6 else None),
            )
        (series,) = read_series(database)
    (found,) = run_changes(series)
    assert found.run is series.runs[6]


def test_fifty_unchanged_runs_raise_no_alarm_at_any_time(tmp_path):
    with open_history(tmp_path / "history.db", create=True) as database:
        for week in range(50):
            record_run(database, repeat_run(tmp_path, week))
        (series,) = read_series(database)
    seen = [series._replace(runs=series.runs[:count]) for count in (*range(2, 10), *range(10, 51, 10))]
    assert {one.sentence for part in seen for found in run_changes(part) for one in found.changed} == set()


def test_every_version_that_differs_is_named_as_a_possible_cause(tmp_path):
    def update_transformers(result: Result) -> None:
        result["versions"]["transformers"] = "5.18.0"
        result["device"]["driver"] = "590.1"
        if result["spec"]["row"] == ROW:
            result["memory"]["peak_gib"] *= 1.02

    (found,) = changes_found(tmp_path, 4, update_transformers)
    assert [cause.what for cause in found.causes] == ["driver", "transformers"]
    assert "transformers 5.17.0 → 5.18.0" in [cause.sentence for cause in found.causes]


def test_a_version_that_changes_nothing_is_not_reported(tmp_path):
    assert changes_found(tmp_path, 4, lambda result: result["versions"].update(transformers="5.18.0")) == []


def test_a_new_segment_of_runs_starts_where_values_change_by_more_than_their_noise():
    assert segment_starts([10.0, 10.1, 9.9, 10.0, 12.0], 0.1, 100) == [4]
    assert segment_starts([10.0, 10.1, 9.9, 10.0, 10.2], 0.1, 100) == []


def test_an_equal_change_in_many_rows_is_shown_in_one_line() -> None:
    seeds = [RunChange(f"row-{number}", "seed", "42", "43") for number in range(4)]
    verdicts = [RunChange("", f"Statement {number}.", "pass", "fail") for number in range(4)]
    found = change_sentences([seeds[0], *verdicts, *seeds[1:], RunChange("row-0", "outcome", "fits", "oom")])
    assert found == [
        "4 rows: seed 42 → 43",
        *(f"Statement {number}: pass → fail" for number in range(4)),
        "row-0: outcome fits → out of GPU memory",
    ]
    assert change_sentences(seeds[:3]) == [f"row-{number}: seed 42 → 43" for number in range(3)]
