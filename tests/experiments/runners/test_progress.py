"""The progress of a run, printed as lines or as a table."""

from io import StringIO

from rich.console import Console

from experiments.results.schema import Memory, Progress
from experiments.results.wording import format_duration
from experiments.runners.progress import LiveView, RowState, View, progress_table, view_on
from tests.support.results import in_memory
from tests.support.runners.fake_view import RecordingView
from tests.support.runners.rows import spec

PROGRESS = Progress(
    phase="forward",
    step=2,
    micro_steps=9,
    planned_micro_steps=24,
    allocated_gib=31.256,
    memory=Memory(peak_gib=38.5),
    left_s=75.0,
)


def printed_text(thing) -> str:
    text = StringIO()
    Console(file=text, width=100).print(thing)
    return text.getvalue()


def test_a_running_row_shows_its_position():
    text = printed_text(progress_table([RowState(spec("a"), 12.0, PROGRESS)], done=3, total=15, left_s=600))
    assert "3 of 15 rows done, about 10:00 left" in text
    assert text.splitlines()[-1].split() == [
        *("a", "forward", "9", "of", "24", "31.26", "GiB", "38.5", "GiB", "0:12", "1:15")
    ]


def test_the_expected_time_stands_beside_the_elapsed_time():
    view = RecordingView()
    view.expect({"a": (20.0, 20.0), "b": (50.0, 70.0)})
    for row in ("a", "b", "c"):
        view.report_start(spec(row), "no result yet")
    assert view.lines == [
        "a: starts (no result yet), expected to take 0:20",
        "b: starts (no result yet), expected to take 0:50 to 1:10",
        "c: starts (no result yet)",
    ]
    states = [RowState(spec("a"), 12.0, PROGRESS), RowState(spec("c"), 3.0, PROGRESS)]
    first, second = printed_text(progress_table(states, 0, 2, None, {"a": "0:20"})).splitlines()[-2:]
    assert first.split()[-3:] == ["0:12", "0:20", "1:15"]
    assert second.split()[-2:] == ["0:03", "1:15"]


def test_times_of_different_length_are_right_aligned():
    states = [RowState(spec("a"), seconds, PROGRESS) for seconds in (7.0, 3723.0)]
    short, long = printed_text(progress_table(states, 0, 2, None)).splitlines()[-2:]
    assert short.index(" 0:07") + len(" 0:07") == long.index(" 1:02:03") + len(" 1:02:03")


def test_a_row_without_a_progress_report_is_starting():
    text = printed_text(progress_table([RowState(spec("a"), 1.0, None)], 0, 1, None))
    assert "left" not in text.splitlines()[0]
    assert text.splitlines()[-1].split() == ["a", "starting", "0:01"]


def test_a_row_that_has_ended_is_not_starting():
    text = printed_text(progress_table([RowState(spec("a"), 9.0, None, "ending")], 0, 1, None))
    assert text.splitlines()[-1].split() == ["a", "ending", "0:09"]


def test_steps_are_not_counted_before_they_are_planned():
    loading = PROGRESS.model_copy(update={"phase": "load", "micro_steps": 0, "planned_micro_steps": 0})
    assert " 0 of 0" not in printed_text(progress_table([RowState(spec("a"), 9.0, loading)], 0, 1, None))


def test_next_to_a_miniature_is_the_prediction_at_full_size():
    text = StringIO()
    view, row = View(Console(file=text, width=200)), spec("b").model_copy(update={"size": "tiny"})
    view.show_predictions("", {"b": "out of GPU memory, as the lab states"})
    view.report_end(row, in_memory.result("b", size="tiny", memory={"peak_gib": 0.005629}))
    assert text.getvalue().strip() == (
        f"b: ran (miniature), peak 5.764 MiB; at full size on {row.card}: out of GPU memory, as the lab states"
    )


def test_a_terminal_gets_the_table_and_a_file_gets_lines():
    assert type(view_on(Console(file=StringIO()))) is View
    assert type(view_on(Console(file=StringIO(), force_terminal=True))) is LiveView


def test_the_table_is_drawn_while_rows_run():
    text = StringIO()
    view = view_on(Console(file=text, force_terminal=True, width=100))
    with view.live():
        view.show_rows([RowState(spec("a"), 12.0, PROGRESS)], 0, 1, None)
        view.report_end(spec("b"), in_memory.result("b", memory={"peak_gib": 2.0}))
    assert "9 of 24" in text.getvalue()
    assert "b: fits, peak 2 GiB" in text.getvalue()


def test_times_are_shown_in_hours_minutes_and_seconds():
    assert [format_duration(seconds) for seconds in (7, 750, 3723)] == ["0:07", "12:30", "1:02:03"]
    assert [format_duration(seconds) for seconds in (6.6, 59.6, 3599.7)] == ["0:07", "1:00", "1:00:00"]
