"""Published measurements of memory: each has a prediction, the stored table is current, deviations are explained."""

from tests.benchmarks.prediction.published import FOLDER, LARGE, PublishedPrediction, cases, relative_error, table

UNEXPLAINED = {"sl_p14_ddp_amp", "fms_santacoder_full_b8", "fms_santacoder_full_2gpu_b4"}
"""Deviations whose reason is unknown."""


def stored_predictions() -> dict[str, PublishedPrediction]:
    lines = (FOLDER / "predicted.jsonl").read_text().splitlines()
    return {one.id: one for one in map(PublishedPrediction.model_validate_json, lines)}


def test_every_published_measurement_was_predicted_and_the_stored_table_is_current():
    known, found = cases(), stored_predictions()
    assert [case.id for case in known] == list(found)
    assert [one.id for one in found.values() if one.problem] == []
    assert (FOLDER / "published.md").read_text() == table(known, found)


def test_every_large_error_is_explained_and_no_training_is_predicted_to_run_out_of_memory():
    found = stored_predictions()
    large = {
        case.id
        for case in cases()
        if abs(relative_error(case, found[case.id])) > LARGE and not (case.why or case.unknown)
    }
    assert large == UNEXPLAINED
    assert [one.id for one in found.values() if one.outcome == "oom"] == []
