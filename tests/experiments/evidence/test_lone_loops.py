"""First ranks alone on a GPU, with DeepSpeed, FSDP and clipping: each case is stored, and the table is current."""

import json

import pytest

from tests.benchmarks.prediction.lone_loops.__main__ import answer_cases, read_answers, read_cases, table
from tests.benchmarks.prediction.tables import EVIDENCE

MEASURED, PREDICTED = (read_answers(EVIDENCE / f"lone_loops{end}.jsonl") for end in ("", "_predicted"))


def test_every_case_was_measured_and_predicted_and_the_stored_table_is_current():
    known = {case.name: case.ranks for case in read_cases()}
    for answers in (MEASURED, PREDICTED):
        assert {name: one["ranks"] for name, one in answers.items()} == known
    assert (EVIDENCE / "lone_loops.md").read_text() == table(MEASURED, PREDICTED)


@pytest.fixture
def changed():
    """Return the table with another prediction for a case."""

    def build(name, **values):
        return table(MEASURED, PREDICTED | {name: PREDICTED[name] | values})

    return build


def test_the_table_shows_a_difference_and_a_failed_case(changed):
    name = "deepspeed-stage-3-client"
    measured = MEASURED[name]
    text = changed(name, peak_gib=measured["peak_gib"] * 1.5)
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {name} "))
    assert "+50.00%" in line
    assert f"Largest difference: {measured['peak_gib'] / 2:.3f} GiB of the peak" in text
    failed = changed(name, error=["out of memory"])
    assert failed.endswith(f"- {name}: not predicted\n")
    assert f"of {len(MEASURED) - 1} cases" in failed


def test_a_second_run_keeps_the_finished_cases_and_repeats_the_failed_ones(tmp_path, capsys):
    file = tmp_path / "found.jsonl"
    names = [case.name for case in read_cases()[:3]]
    ran = []

    def run(case):
        ran.append(case.name)
        failed = case.name == names[1] and len(ran) < 4
        return {"error": ["out of memory"]} if failed else {"peak_gib": 1.0, "reserved_gib": 2.0}

    assert not answer_cases(file, names, run)
    assert ran == names
    assert f"failed: {names[1]}" in capsys.readouterr().out
    assert answer_cases(file, names, run)
    assert ran == [*names, names[1]]
    assert [json.loads(line)["case"] for line in file.read_text().splitlines()] == names


def test_an_unknown_case_is_an_error_that_names_the_known_ones(tmp_path):
    with pytest.raises(SystemExit, match=r"no-such: unknown case; allowed: .*deepspeed-stage-3-client"):
        answer_cases(tmp_path / "found.jsonl", ["no-such"], lambda _: {})
