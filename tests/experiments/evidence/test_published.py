"""Published measurements of memory: each has a prediction, the stored table is current, deviations are explained."""

import statistics

from tests.benchmarks.prediction.published import FOLDER, LARGE, PublishedPrediction, cases, relative_error, table


def stored_predictions() -> dict[str, PublishedPrediction]:
    lines = (FOLDER / "predicted.jsonl").read_text().splitlines()
    return {one.id: one for one in map(PublishedPrediction.model_validate_json, lines)}


def test_every_published_measurement_was_predicted_and_the_stored_table_is_current():
    known, found = cases(), stored_predictions()
    assert [case.id for case in known] == list(found)
    assert [one.id for one in found.values() if one.problem] == []
    assert (FOLDER / "published.md").read_text() == table(known, found)


def test_errors_are_small_if_all_settings_are_known():
    found = stored_predictions()
    errors = {case.id: abs(relative_error(case, found[case.id])) for case in cases() if not case.unknown}
    assert statistics.median(errors.values()) <= 0.03
    assert {name: error for name, error in errors.items() if error > LARGE} == {}


def test_no_published_training_is_predicted_to_run_out_of_memory():
    assert [one.id for one in stored_predictions().values() if one.outcome == "oom"] == []
