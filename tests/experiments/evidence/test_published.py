"""Published figures of memory: every case has an answer, its table is the stored one, and deviations are explained."""

from tests.benchmarks.prediction.published import FOLDER, LARGE, Answer, cases, error, table

UNEXPLAINED = {"sl_p14_ddp_amp", "fms_santacoder_full_b8", "fms_santacoder_full_2gpu_b4"}
"""Deviations whose reason is unknown."""


def answers() -> dict[str, Answer]:
    lines = (FOLDER / "predicted.jsonl").read_text().splitlines()
    return {one.id: one for one in map(Answer.model_validate_json, lines)}


def test_every_case_was_predicted_and_the_table_is_that_of_its_answers():
    known, found = cases(), answers()
    assert [case.id for case in known] == list(found)
    assert [one.id for one in found.values() if one.problem] == []
    assert (FOLDER / "published.md").read_text() == table(known, found)


def test_every_large_deviation_is_explained_and_none_is_out_of_memory_where_it_ran():
    found = answers()
    large = {case.id for case in cases() if abs(error(case, found[case.id])) > LARGE and not (case.why or case.unknown)}
    assert large == UNEXPLAINED
    assert [one.id for one in found.values() if one.outcome == "oom"] == []
