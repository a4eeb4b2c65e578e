"""The progress of a run, printed as lines or as a table."""

import threading
from io import StringIO

import pytest
from rich.console import Console

from experiments.results.schema import Memory, Progress
from experiments.results.wording import format_duration
from experiments.runners import progress
from experiments.runners.progress import LiveView, RowState, View, progress_table, view_on
from experiments.runners.slurm.download import TransferProgress
from tests.support.results import in_memory
from tests.support.runners.fake_time import FakeTime
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


def test_a_running_row_shows_its_phase_and_its_steps():
    text = printed_text(progress_table([RowState(spec("a"), 12.0, PROGRESS)], done=3, total=15, left_s=600))
    assert "3 of 15 rows done, about 10:00 left" in text
    assert text.splitlines()[-1].split() == [
        *("a", "forward", "9", "of", "24", "31.26", "GiB", "38.5", "GiB", "0:12", "1:15")
    ]


def test_the_expected_time_is_shown_next_to_the_elapsed_time():
    view = RecordingView()
    view.set_expected_times({"a": (20.0, 20.0), "b": (50.0, 70.0)})
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


def test_numbers_of_different_length_are_right_aligned():
    long = PROGRESS.model_copy(
        update={"micro_steps": 12345, "allocated_gib": 131.2, "memory": Memory(peak_gib=138.5), "left_s": 3723.0}
    )
    lines = printed_text(progress_table([RowState(spec("a"), 7.0, one) for one in (PROGRESS, long)], 0, 2, None))
    first, second = lines.splitlines()[-2:]
    for words in (("    9 of 24", "12345 of 24"), ("31.26 GiB", "131.2 GiB"), (" 38.5 GiB", "138.5 GiB")):
        assert {first.index(words[0]), second.index(words[1])} == {second.index(words[1])}
    assert len(first.rstrip()) == len(second.rstrip())


@pytest.mark.parametrize(("total", "words"), [(3, ""), (4, "; 1 waiting"), (5, "; 2 waiting")])
def test_the_title_states_how_many_rows_wait(total, words):
    text = printed_text(progress_table([RowState(spec("a"), 7.0, PROGRESS)], 2, total, None))
    assert text.splitlines()[0].strip() == f"2 of {total} rows done{words}"


def test_a_remaining_time_below_a_second_is_shown_as_one_second():
    assert "about 0:01 left" in printed_text(progress_table([], 0, 1, 0.0))
    ends = PROGRESS.model_copy(update={"left_s": 0.0})
    assert printed_text(progress_table([RowState(spec("a"), 7.0, ends)], 0, 1, None)).split()[-1] == "0:00"


def test_columns_that_do_not_fit_are_hidden_and_columns_of_times_are_not():
    text = StringIO()
    Console(file=text, width=40).print(progress_table([RowState(spec("a"), 12.0, PROGRESS)], 0, 1, None))
    assert "not shown at this width: micro-steps, now, peak" in " ".join(text.getvalue().split())
    assert "0:12" in text.getvalue()


def test_a_download_is_shown_below_the_table_and_drawn_at_most_once_per_refresh(monkeypatch):
    clock = FakeTime()
    monkeypatch.setattr(progress, "time", clock)
    text = StringIO()
    view = view_on(Console(file=text, force_terminal=True, color_system=None, width=100))
    with view.live():
        for files, seconds in ((1, 0.0), (2, 0.25), (3, 0.01)):
            clock.now += seconds
            view.show_download(spec("a"), TransferProgress(files, 9, 10**6, 4 * 10**6, None))
    shown = text.getvalue()
    assert [f"{files} of 9 files, 1 of 4 MB" in shown for files in (1, 2, 3)] == [True, False, True]
    assert "0 of 0 rows done" in shown


@pytest.mark.parametrize(
    ("outcome", "elapsed_s", "line"),
    [
        ("fits", 12.4, "b: fits, 12 s"),
        ("fits", 0.0, "b: fits"),
        ("oom", 1.6, "b: out of GPU memory, 2 s: b ended as oom"),
    ],
)
def test_the_line_about_an_ended_row_has_its_time_and_its_reason(outcome, elapsed_s, line):
    text = StringIO()
    ended = in_memory.result("b", outcome).model_copy(update={"elapsed_s": elapsed_s})
    view = View(Console(file=text, width=200))
    view.show_predictions("", {"b": "out of GPU memory"})
    view.report_end(spec("b"), ended)
    assert text.getvalue().strip() == line


def test_a_long_status_is_wrapped_in_its_column():
    waits = RowState(spec("a"), 12.0, None, "queued (Dependency: the weights of x 1 GiB)")
    text = StringIO()
    Console(file=text, width=40).print(progress_table([waits], 0, 1, None))
    assert len(text.getvalue().splitlines()) == 5
    assert text.getvalue().splitlines()[1].split() == ["row", "phase", "time"]


@pytest.mark.parametrize(
    ("outcome", "size", "color"),
    [("fits", "full", 32), ("fits", "tiny", None), ("oom", "full", 33), ("error", "full", 31), ("rejected", "full", 2)],
)
def test_the_line_about_an_ended_row_has_the_color_of_its_outcome(outcome, size, color):
    text = StringIO()
    console = Console(file=text, width=200, force_terminal=True, color_system="standard")
    View(console).report_end(spec("b"), in_memory.result("b", outcome, size=size))
    assert text.getvalue().startswith(f"\x1b[{color}m" if color else "b: ran")


def test_a_row_without_a_progress_report_is_shown_as_starting():
    text = printed_text(progress_table([RowState(spec("a"), 1.0, None)], 0, 1, None))
    assert "left" not in text.splitlines()[0]
    assert text.splitlines()[-1].split() == ["a", "starting", "0:01"]


def test_a_row_that_is_ending_without_a_progress_report_is_not_shown_as_starting():
    text = printed_text(progress_table([RowState(spec("a"), 9.0, None, "ending")], 0, 1, None))
    assert text.splitlines()[-1].split() == ["a", "ending", "0:09"]


def test_steps_are_not_shown_before_their_number_is_known():
    loading = PROGRESS.model_copy(update={"phase": "load", "micro_steps": 0, "planned_micro_steps": 0})
    assert " 0 of 0" not in printed_text(progress_table([RowState(spec("a"), 9.0, loading)], 0, 1, None))


def test_the_prediction_at_full_size_is_shown_next_to_a_miniature():
    text = StringIO()
    view, row = View(Console(file=text, width=200)), spec("b").model_copy(update={"size": "tiny"})
    view.show_predictions("", {"b": "out of GPU memory, as the lab states"})
    view.report_end(row, in_memory.result("b", size="tiny", memory={"peak_gib": 0.005629}))
    assert text.getvalue().strip() == (
        f"b: ran (miniature), peak 5.764 MiB; at full size on {row.card}: out of GPU memory, as the lab states"
    )


def test_progress_is_a_live_table_on_a_terminal_and_lines_in_a_file():
    assert type(view_on(Console(file=StringIO()))) is View
    assert type(view_on(Console(file=StringIO(), force_terminal=True))) is LiveView


def test_no_thread_draws_the_table_in_the_background():
    before = threading.active_count()
    with view_on(Console(file=StringIO(), force_terminal=True)).live():
        assert threading.active_count() == before, "a thread draws it"


def test_the_table_and_the_lines_about_ended_rows_are_drawn_while_rows_run():
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
