"""How long rows are expected to take."""

import pytest

from experiments.history import durations
from experiments.history.durations import expected, in_words
from experiments.results.run_folder import RUN_FILE
from tests.support.results.stored_runs import stored_run, write_result

NAME, CARD = "single_gpu_blip2", "a100_80gb"


@pytest.fixture
def results(monkeypatch, tmp_path):
    monkeypatch.setattr(durations, "EVIDENCE", tmp_path / "none")
    for run_id, seconds in (("one", 200.0), ("two", 100.0)):
        folder = stored_run(tmp_path, NAME, CARD, "baseline", "reduced-batch", run_id=run_id, length="verdict")
        for result in folder.results().values():
            write_result(folder, result.model_copy(update={"elapsed_s": seconds}))
    stored_run(tmp_path, NAME, CARD, "xxl", run_id="tiny", size="tiny", length="verdict")
    return tmp_path


def test_the_longest_measured_time_of_each_row_counts(results):
    found = expected(NAME, ["baseline", "reduced-batch"], "full", "verdict", results)
    assert (found.seconds, found.measured, found.rows) == (400.0, 2, 2)
    assert in_words({NAME: found}) == f"time, one row after another, as measured on {found.devices[0]}: {NAME} 7 min"


def test_other_sizes_and_lengths_and_rows_without_a_result_do_not_count(results):
    found = expected(NAME, ["baseline", "xxl"], "full", "verdict", results)
    assert (found.seconds, found.measured) == (200.0, 1)
    assert in_words({NAME: found}).endswith(f"{NAME} 4 min (1 of 2 rows never measured)")
    assert "none of these rows was measured" in in_words({NAME: expected(NAME, ["xxl"], "full", "as-taught", results)})


def test_times_of_tiny_models_say_so_and_a_suite_without_times_has_no_number(results):
    tiny = expected(NAME, ["xxl"], "tiny", "verdict", results)
    none = expected(NAME, ["baseline"], "tiny", "verdict", results)
    assert tiny.devices[0].endswith(", tiny models")
    assert in_words({NAME: tiny, "other": none}).endswith(", other never measured")


def test_a_run_that_cannot_be_read_is_left_out(results):
    (results / "one" / RUN_FILE).write_text("{")
    assert expected(NAME, ["baseline"], "full", "verdict", results).seconds == 100.0


def test_the_stored_evidence_has_times_of_every_row_of_a_lab(tmp_path):
    rows = ["baseline", "xxl-sgd", "xxl-cpu-offload"]
    found = expected(NAME, rows, "full", "verdict", tmp_path)
    assert (found.measured, found.devices) == (3, ("NVIDIA H200",))
