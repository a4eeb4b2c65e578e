"""How long rows are expected to take: as measured, or as predicted."""

import pytest

from experiments.history import durations
from experiments.history.durations import StoredTimes, expected_steps
from experiments.history.outside_steps import outside_steps, row_parts
from experiments.prediction.predict import suite_row_spec
from experiments.results.run_folder import RUN_FILE
from experiments.results.schema import StageTimes
from experiments.suites.suite import suite_named
from experiments.training.measure.step_profile import StepProfile
from tests.support.results.stored_runs import stored_run, write_result
from tests.support.runners.fake_predictions import failure_on_card

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


def test_the_shorter_of_two_measured_times_is_the_expected_one_and_both_are_its_bounds(results):
    """A busy host makes a row longer, nothing makes it shorter."""
    time, around_s = expected_time(StoredTimes.read(results), "baseline"), outside_steps().between_rows_s
    error = outside_steps().error_share
    assert (time.expected_s, time.gpus) == (100.0 + around_s, 1)
    assert (time.low_s, time.high_s) == (100.0 + around_s * (1 - error), 200.0 + around_s * (1 + error))
    assert time.source.startswith("measured on ")


def test_only_the_training_time_of_a_measured_row_counts_and_its_other_stages_are_predicted(results):
    stored = StoredTimes.read(results)
    outside, parts = outside_steps(), row_parts(spec_of("baseline").settings, 0, CARD)
    for start_s in (1.0, 50.0):
        times = StageTimes(start_s=start_s, build_s=start_s, train_s=30.0, end_s=start_s)
        timed = [(run, one.model_copy(update={"times": times, "parameters": 0})) for run, one in stored.results]
        time = expected_time(StoredTimes(tuple(timed), ()), "baseline")
        assert time.expected_s == pytest.approx(
            outside.between_rows_s + outside.row_s(parts, "start", "build", "end") + 30.0
        )
        assert time.start_s == pytest.approx(outside.between_rows_s + outside.row_s(parts, "start"))


def test_the_time_of_a_row_in_a_job_of_its_own_includes_the_import_of_its_libraries(results):
    stored, outside = StoredTimes.read(results), outside_steps()
    as_job = stored.expected_time(spec_of("baseline"), CARD, is_job=True)
    longer_s = as_job.expected_s - expected_time(stored, "baseline").expected_s
    assert longer_s == pytest.approx(outside.job_s + outside.libraries_s - outside.between_rows_s)


def test_a_time_of_another_length_counts_for_a_tiny_row_that_runs_the_same_steps(tmp_path):
    stored = StoredTimes.read(tmp_path)
    assert {run.length for run, one in stored.results if one.spec.size == "tiny"} == {"verdict"}
    assert expected_time(stored, "reduced-batch", size="tiny", length="as-taught").source.endswith(", tiny models")


def test_the_time_of_a_row_with_other_settings_is_not_used_as_an_expected_time(tmp_path):
    """The rows for a card with 12 GB have smaller models than those of the same names for other cards."""
    small = spec_of("reduced-batch", card="h100_1g_12gb")
    stored = StoredTimes.read(tmp_path)
    time = stored.expected_time(small, "h200_141gb")
    assert time.expected_s < stored.expected_time(spec_of("reduced-batch"), "h200_141gb").expected_s
    others = tuple((run, one) for run, one in stored.results if one.spec.card != small.card)
    assert StoredTimes(others, ()).expected_time(small, "h200_141gb") is None


def test_a_row_has_no_expected_time_if_it_has_no_result_or_only_results_of_another_size_or_length(results):
    stored = StoredTimes.read(results)
    unknown = spec_of("xxl"), spec_of("baseline", length="as-taught"), spec_of("baseline", size="tiny")
    assert [stored.expected_time(spec, CARD) for spec in unknown] == [None] * 3
    assert expected_time(stored, "xxl", size="tiny").source.endswith(", tiny models")


def test_a_time_on_a_shared_gpu_is_not_used_as_an_expected_time(tmp_path):
    stored = StoredTimes.read(tmp_path)
    shared = tuple(
        (run, result.model_copy(update={"device": result.device.model_copy(update={"shared": True})}))
        for run, result in stored.results
    )
    assert StoredTimes(shared, ()).expected_time(spec_of("reduced-batch"), CARD) is None


def test_a_run_that_cannot_be_read_is_left_out(results):
    (results / "one" / RUN_FILE).write_text("{")
    assert expected_time(StoredTimes.read(results), "baseline").high_s < 200.0


def outside_range_s(prediction):
    outside, parts = outside_steps(), row_parts(prediction.spec.settings, prediction.parameters, CARD)
    seconds = outside.between_rows_s + outside.row_s(parts, *parts)
    return seconds, seconds * (1 - outside.error_share), seconds * (1 + outside.error_share)


def test_a_row_without_a_measured_time_has_a_predicted_one(tmp_path):
    stored = StoredTimes.read(tmp_path)
    time, prediction = expected_time(stored, "reduced-batch", length="as-taught"), _prediction("reduced-batch", stored)
    steps = prediction.time.planned_micro_steps / prediction.spec.settings.accumulate
    steps_s = (each - outside_s for each, outside_s in zip(time[:3], outside_range_s(prediction), strict=True))
    factors = 1.0, 1 - prediction.time.error_share, 1 + prediction.time.error_share
    assert list(steps_s) == pytest.approx([steps * prediction.time.step_s * factor for factor in factors])
    assert (time.source, time.other_chip) == (f"predicted for {CARD}", False)


def test_a_row_ends_when_its_times_are_steady_but_not_before_its_utilization_is_measured(tmp_path):
    stored = StoredTimes.read(tmp_path)
    prediction, time = _prediction("reduced-batch", stored), expected_time(stored, "reduced-batch")
    least, most = 6, 12
    steps = least + outside_steps().longer_share["images in 32 bit"] * (most - least)
    assert time.expected_s - outside_range_s(prediction)[0] == pytest.approx(steps * prediction.time.step_s)
    long = spec_of("reduced-batch").model_copy(update={"steady_s": 30 * prediction.time.step_s})
    steady_s = stored.expected_time(long, CARD).expected_s - outside_range_s(prediction)[0]
    assert steady_s == pytest.approx(32 * prediction.time.step_s)


def test_a_row_of_several_ranks_runs_additional_steps_for_its_profile():
    suite, outside = suite_named("multi_gpu_litgpt"), outside_steps()
    spec = suite_row_spec(suite, suite.row("7b-4gpu-fsdp-b8"), CARD).model_copy(update={"length": "verdict"})
    low, expected, high = expected_steps(spec, 1000, 1.0, outside)
    assert (low, high) == (6 + StepProfile.STEPS, 12 + StepProfile.STEPS)
    assert low + outside.longer_share["texts"] * 6 == pytest.approx(expected)
    assert expected_steps(spec, 7, 1.0, outside) == (7, 7, 7)


def test_a_row_that_is_predicted_to_run_out_of_memory_ends_at_the_latest_in_the_step_of_its_peak(tmp_path):
    stored = StoredTimes.read(tmp_path)
    time, prediction = expected_time(stored, "baseline", length="as-taught"), _prediction("baseline", stored)
    expected_s, low_s, high_s = outside_range_s(prediction)
    longest_s = (prediction.peak_step + 1) * prediction.time.step_s
    assert time.low_s == pytest.approx(low_s)
    assert time.expected_s == pytest.approx(expected_s + longest_s / 2)
    assert time.high_s == pytest.approx(high_s + longest_s * (1 + prediction.time.error_share))


@pytest.mark.parametrize(("needed_share", "ends_in_first_step"), [(0.99, False), (1.01, True)])
def test_the_expected_time_of_a_borderline_row_is_that_of_its_likelier_outcome_and_the_bounds_cover_both(
    tmp_path, needed_share, ends_in_first_step
):
    fits = _prediction("reduced-batch", StoredTimes.read(tmp_path))
    needed_gib = needed_share * fits.usable_gib
    failure = failure_on_card(needed_gib, fits.usable_gib)
    borderline = fits.model_copy(update={"needed_gib": needed_gib, "failure": failure, "peak_step": 0})
    time, whole = (expected_time(StoredTimes((), (one,)), "reduced-batch") for one in (borderline, fits))
    assert (time.expected_s < whole.expected_s, time.high_s) == (ends_in_first_step, whole.high_s)
    assert time.low_s < whole.low_s


def test_a_prediction_is_preferred_to_a_time_of_another_chip_but_not_to_one_of_the_same_chip(tmp_path):
    stored = StoredTimes.read(tmp_path)
    same, other = expected_time(stored, "reduced-batch", card="h100_94gb"), expected_time(stored, "reduced-batch")
    assert (same.source, same.other_chip) == ("measured on NVIDIA H200", False)
    assert other.source == f"predicted for {CARD}"
    without = expected_time(StoredTimes(stored.results, ()), "reduced-batch")
    assert (without.source, without.other_chip) == ("measured on NVIDIA H200", True)


def test_a_time_belongs_to_the_card_that_ran_and_not_to_the_card_that_it_emulated(tmp_path):
    stored, emulated = StoredTimes.read(tmp_path), spec_of("reduced-batch")
    assert (
        stored.expected_time(emulated, "h200_141gb").other_chip,
        stored.expected_time(emulated, "v100_32gb").other_chip,
    ) == (False, True)


def _prediction(row, stored):
    return next(one for one in stored.predictions if (one.spec.suite, one.spec.row, one.spec.card) == (NAME, row, CARD))
