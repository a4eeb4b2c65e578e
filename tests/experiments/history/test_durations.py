"""How long rows are expected to take: as measured, or as predicted."""

import pytest

from experiments.history import durations
from experiments.history.durations import StoredTimes
from experiments.prediction.predict import suite_row_spec
from experiments.results.run_folder import RUN_FILE
from experiments.suites.suite import suite_named
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


def expected_time(stored, row, card=CARD, **choices):
    return stored.expected_time(spec_of(row, card=card, **choices), card)


def spec_of(row, size="full", length="verdict", card=CARD):
    suite = suite_named(NAME)
    return suite_row_spec(suite, suite.row(row), card).model_copy(update={"size": size, "length": length})


def test_the_expected_time_of_a_row_is_its_longest_measured_one(results):
    time = expected_time(StoredTimes.read(results), "baseline")
    assert (time.low_s, time.high_s, time.gpus) == (200.0, 200.0, 1)
    assert time.source.startswith("measured on ")


def test_other_sizes_and_lengths_and_rows_without_a_result_do_not_count(results):
    stored = StoredTimes.read(results)
    unknown = spec_of("xxl"), spec_of("baseline", length="as-taught"), spec_of("baseline", size="tiny")
    assert [stored.expected_time(spec, CARD) for spec in unknown] == [None] * 3
    assert expected_time(stored, "xxl", size="tiny").source.endswith(", tiny models")


def test_times_on_shared_gpus_do_not_count(tmp_path):
    stored = StoredTimes.read(tmp_path)
    shared = tuple(
        (run, result.model_copy(update={"device": result.device.model_copy(update={"shared": True})}))
        for run, result in stored.results
    )
    assert StoredTimes(shared, ()).expected_time(spec_of("reduced-batch"), CARD) is None


def test_a_run_that_cannot_be_read_is_left_out(results):
    (results / "one" / RUN_FILE).write_text("{")
    assert expected_time(StoredTimes.read(results), "baseline").high_s == 100.0


def test_a_row_without_a_measured_time_has_a_predicted_one(tmp_path):
    stored = StoredTimes.read(tmp_path)
    time, prediction = expected_time(stored, "reduced-batch", length="as-taught"), _prediction("reduced-batch", stored)
    steps = prediction.time.planned_micro_steps / prediction.spec.settings.accumulate
    low_s, high_s = (time_s - stored.time_outside_steps_s(several_ranks=False) for time_s in time[:2])
    assert low_s == pytest.approx(steps * prediction.time.step_s * (1 - prediction.time.error_share))
    assert high_s == pytest.approx(steps * prediction.time.step_s * (1 + prediction.time.error_share))
    assert (time.source, time.other_chip) == (f"predicted for {CARD}", False)


def test_a_row_that_is_predicted_to_run_out_of_memory_ends_at_the_latest_in_that_step(tmp_path):
    stored = StoredTimes.read(tmp_path)
    time, prediction = expected_time(stored, "baseline", length="as-taught"), _prediction("baseline", stored)
    assert time.low_s == stored.time_outside_steps_s(several_ranks=False)
    longest_s = (prediction.peak_step + 1) * prediction.time.step_s * (1 + prediction.time.error_share)
    assert time.high_s - time.low_s == pytest.approx(longest_s)


def test_a_time_of_the_same_chip_counts_before_a_prediction_and_a_prediction_before_that_of_another_chip(tmp_path):
    stored = StoredTimes.read(tmp_path)
    same, other = expected_time(stored, "reduced-batch", card="h100_94gb"), expected_time(stored, "reduced-batch")
    assert (same.source, same.other_chip) == ("measured on NVIDIA H200", False)
    assert other.source == f"predicted for {CARD}"
    without = expected_time(StoredTimes(stored.results, ()), "reduced-batch")
    assert (without.source, without.other_chip) == ("measured on NVIDIA H200", True)


def test_a_time_belongs_to_the_card_that_ran_and_not_to_the_emulated_one(tmp_path):
    stored, emulated = StoredTimes.read(tmp_path), spec_of("reduced-batch")
    assert (
        stored.expected_time(emulated, "h200_141gb").other_chip,
        stored.expected_time(emulated, "v100_32gb").other_chip,
    ) == (False, True)


def test_rows_of_several_processes_need_longer_to_start(tmp_path):
    stored = StoredTimes.read(tmp_path)
    assert 0 < stored.time_outside_steps_s(several_ranks=False) < stored.time_outside_steps_s(several_ranks=True)
    assert StoredTimes((), ()).time_outside_steps_s(several_ranks=False) == 0


def _prediction(row, stored):
    return next(one for one in stored.predictions if (one.spec.suite, one.spec.row, one.spec.card) == (NAME, row, CARD))
