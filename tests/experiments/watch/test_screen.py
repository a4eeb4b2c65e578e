"""The live view in a terminal."""

import asyncio
import time
from dataclasses import replace

import pytest
from textual.widget import Widget
from textual.widgets import DataTable, Label, RichLog, Static

from experiments.watch.screen import COLUMNS, WatchApp, cells, headline
from experiments.watch.state import RunWatcher
from tests.experiments.watch.conftest import RUNNING, WAITING

COST = "lease llm, 2h left, 4.1 of 12.0 SU"


def run_app(folder, query_app):
    """Run the app and return what ``query_app`` returns, a function of the app and its pilot."""

    async def run():
        app = WatchApp(RunWatcher(folder.path), lambda: COST)
        async with app.run_test(size=(140, 45)) as pilot:
            await app.workers.wait_for_complete()
            await pilot.pause()
            return await query_app(app, pilot)

    return asyncio.run(run())


def text_of(log):
    return "\n".join(line.text for line in log.lines)


def test_the_live_view_has_rows_cost_log_load_and_verdicts(folder):
    async def query_app(app, pilot):
        table = app.query_one(DataTable)
        while table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value != RUNNING:
            await pilot.press("down")
        await pilot.pause()
        load = [str(one.render()) for one in app.query("#load Static").results(Static)]
        labels = [str(one.render()) for one in app.query(Label)]
        return (
            table.row_count,
            labels,
            load,
            text_of(app.query_one("#log", RichLog)),
            text_of(app.query_one("#verdicts", RichLog)),
        )

    rows, labels, load, log, verdicts = run_app(folder, query_app)
    assert rows == len(folder.read_run().rows)
    assert COST in labels
    assert any("rows done" in label for label in labels)
    assert load[1] == "GPU memory: 76 GiB, highest 76"
    assert log == "step 1\nstep 2"
    assert "pass (emulated)" in verdicts
    assert "not evaluated" not in verdicts


def test_a_new_verdict_is_added_to_the_live_view(folder):
    path = folder.row_folder_named("reduced-batch") / "result.json"
    result = path.read_text()
    path.unlink()

    async def query_app(app, pilot):
        before = text_of(app.query_one("#verdicts", RichLog))
        path.write_text(result)
        app.show()
        await pilot.pause()
        return text_of(app.query_one("#verdicts", RichLog)).removeprefix(before)

    added = run_app(folder, query_app)
    assert "pass (emulated)" in added
    assert "predicted" not in added


def test_unchanged_parts_of_the_screen_are_not_drawn_again(folder, monkeypatch):
    now = time.time()
    monkeypatch.setattr("experiments.watch.state.time.time", lambda: now)

    async def use(app, pilot):
        app.show()
        await pilot.pause()
        drawn = []
        monkeypatch.setattr(Widget, "refresh", lambda widget, *_, **__: drawn.append(widget))
        app.show()
        unchanged = list(drawn)
        monkeypatch.setattr("experiments.watch.state.time.time", lambda: now + 60)
        app.show()
        return unchanged, {type(one) for one in drawn}

    unchanged, drawn = run_app(folder, use)
    assert unchanged == []
    assert DataTable in drawn


def test_unreadable_files_are_named_and_the_live_view_continues(folder):
    async def query_app(app, pilot):
        run = (folder.path / "run.json").read_text()
        (folder.path / "run.json").write_text("{")
        app.show()
        await pilot.pause()
        broken = str(app.query_one("#headline", Label).render())
        (folder.path / "run.json").write_text(run)
        app.show()
        await pilot.pause()
        return broken, str(app.query_one("#headline", Label).render())

    broken, mended = run_app(folder, query_app)
    assert "run.json: not a run of schema version" in broken
    assert "rows done" in mended


def test_the_headline_of_a_run_that_stopped_says_how_to_resume_it(folder):
    assert "resumes it" in headline(RunWatcher(folder.path).read())


@pytest.mark.parametrize(
    ("row", "column", "text"),
    [
        (RUNNING, "micro-steps", "3 of 10"),
        (RUNNING, "memory", "40 GiB"),
        (RUNNING, "left", "1:30"),
        (WAITING, "time", ""),
        ("baseline", "state", "out of GPU memory"),
    ],
)
def test_the_table_line_of_a_row_shows_its_state_micro_steps_memory_and_times(folder, row, column, text):
    (found,) = (one for one in RunWatcher(folder.path).read().rows if one.row == row)
    assert cells(found)[COLUMNS.index(column)].plain == text


def test_before_the_first_row_starts_the_headline_shows_what_the_run_prepares(folder):
    now = RunWatcher(folder.path).read()
    waiting = tuple(replace(row, elapsed_s=None) for row in now.rows if row.result is None)
    assert "preparing: rows are predicted" in headline(replace(now, rows=waiting, active=True))
    assert "preparing" not in headline(replace(now, active=True))


@pytest.mark.parametrize(("width", "beside"), [(60, False), (120, True)])
def test_load_and_log_are_side_by_side_on_a_wide_terminal(folder, width, beside):
    async def query_app(app, pilot):
        await pilot.resize_terminal(width, 50)
        await pilot.pause()
        regions = app.query_one("#load").region, app.query_one("#log").region
        return app.query_one("#log", RichLog).border_title, [(one.x, one.right) for one in regions]

    title, (load, log) = run_app(folder, query_app)
    assert (log[0] >= load[1]) is beside
    assert log[1] <= width
    assert title in (f"log of {row}{more}" for row in folder.read_run().rows for more in ("", ": nothing yet"))
