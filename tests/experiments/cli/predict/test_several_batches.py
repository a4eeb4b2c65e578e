"""Batch sizes are answered although another one fails. Fake: the traces."""

import json

import pytest

from experiments.cli.app import main
from experiments.errors import InputError
from experiments.prediction import loop_fit
from experiments.prediction.script import trace
from experiments.prediction.script.trace import ScriptFailed, SimulationFailed
from tests.experiments.cli.predict.test_predict_script import prediction
from tests.support.runners.fake_predictions import card_prediction

MODEL = ["--model", "tiny-llama-1.1b", "--card", "a100_80gb"]
FAILURES = [
    (ScriptFailed(7), 7, "the script itself failed with exit code 7"),
    (ScriptFailed(-9), 137, "the script itself failed with signal SIGKILL"),
    (SimulationFailed("no"), 3, "the simulation failed: no"),
    (InputError("does not run"), 2, "does not run"),
    (KeyboardInterrupt(), 130, "interrupted; predictions that were not shown are lost"),
]


@pytest.fixture
def failing_batches(monkeypatch):
    """Return a function that lets batches fail in the fake traces, and the batches that were traced."""
    failures, traced = dict[int, BaseException](), list[int]()

    def trace_script(words, cards, say, options, *_):
        batch = json.loads(words[-1]).get("batch", 1) if words[-1].startswith("{") else int(words[-1])
        traced.append(batch)
        if batch in failures:
            raise failures[batch]
        needed = 10.0 + batch
        on_cards = tuple(card_prediction(card, needed, usable_gib=78.6) for card in cards)
        return [prediction(needed).model_copy(update={"cards": on_cards})]

    monkeypatch.setattr(trace, "trace_script", trace_script)
    monkeypatch.setattr(loop_fit, "trace_script", trace_script)
    return failures, traced


@pytest.mark.parametrize(("failure", "code", "line"), FAILURES)
def test_a_failure_of_a_later_batch_is_named_and_the_finished_answers_are_shown(
    failing_batches, capsys, failure, code, line
):
    failures, traced = failing_batches
    failures[4] = failure
    assert main(["predict", *MODEL, "--batch", "1,2,4,8", "--json"]) == code
    out, err = capsys.readouterr()
    answered = [1, 2] if code == 130 else [1, 2, 8]
    assert [one["predictions"][0]["cards"][0]["needed_gib"] - 10 for one in json.loads(out)] == answered
    assert f"testbed: batch 4: {line}" in err
    assert traced == sorted({*answered, 4})
    assert main(["predict", *MODEL, "--batch", "1,4"]) == code
    assert " 11.00 " in capsys.readouterr().out


@pytest.mark.parametrize(("failure", "code", "line"), FAILURES)
def test_a_failure_of_the_first_batch_is_named_and_the_others_are_answered(
    failing_batches, capsys, failure, code, line
):
    failures, traced = failing_batches
    failures[4] = failure
    assert main(["predict", *MODEL, "--batch", "4,8,16", "--json"]) == code
    answered = [] if code == 130 else [8, 16]
    assert traced == [4, *answered]
    out, err = capsys.readouterr()
    found = json.loads(out) if answered else out
    assert [one["predictions"][0]["cards"][0]["needed_gib"] - 10 for one in found] == answered
    assert f"testbed: batch 4: {line}" in err
    assert main(["predict", *MODEL, "--batch", "4", "--json"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert f"testbed: {line}" in err


@pytest.mark.parametrize("command", ["predict", "fit"])
def test_a_reason_that_several_batches_share_is_printed_once(failing_batches, capsys, command):
    failures, traced = failing_batches
    failures |= {4: ScriptFailed(7), 8: InputError("does not run"), 16: ScriptFailed(7), 32: InputError("does not run")}
    assert main([command, *MODEL, "--batch", "4,8,16,32", "--json"]) == 7
    assert traced == [4, 8, 16, 32]
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("testbed: ")]
    assert lines[0].startswith("testbed: batch 4: the script itself failed with exit code 7")
    assert lines[1:] == [
        "testbed: batch 8: does not run",
        "testbed: batch 16: fails as batch 4 does",
        "testbed: batch 32: fails as batch 8 does",
    ]


@pytest.mark.parametrize(("failure", "code", "line"), FAILURES)
def test_a_search_that_a_failure_ends_shows_the_batches_that_were_traced(failing_batches, capsys, failure, code, line):
    failures, _ = failing_batches
    failures |= dict.fromkeys(range(9, 4097), failure)
    assert main(["fit", *MODEL, "--batch", "8", "--json"]) == code
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert [one["batch"] for one in found["batches"]] == [4, 8]
    assert found["largest_batch"] == 8
    assert found["failed"]["batch"] > 8
    assert f"testbed: {line}" in err
    assert main(["fit", *MODEL, "--batch", "8"]) == code
    shown = " ".join(capsys.readouterr().out.split())
    assert "batch that fits: --batch 8; the largest traced batch that fits; the search ended at --batch " in shown


@pytest.mark.parametrize(("failure", "code", "line"), FAILURES)
def test_a_search_with_a_script_shows_the_batches_that_were_traced(failing_batches, capsys, failure, code, line):
    failures, _ = failing_batches
    failures |= dict.fromkeys(range(9, 4097), failure)
    script = ["--card", "a100_80gb", "--batch-flag", "--batch", "--json", "--", "python", "x.py"]
    assert main(["fit", *script]) == code
    out, err = capsys.readouterr()
    assert [one["batch"] for one in json.loads(out)["batches"]] == [4, 8]
    assert f"testbed: {line}" in err


def test_a_search_of_several_cards_goes_on_after_a_failure_and_traces_a_failed_batch_once(failing_batches, capsys):
    failures, traced = failing_batches
    failures |= dict.fromkeys(range(9, 4097), ScriptFailed(7))
    cards = ["--card", "a100_80gb,a100_40gb"]
    assert main(["fit", "--model", "tiny-llama-1.1b", *cards, "--batch", "8", "--json"]) == 7
    assert len(json.loads(capsys.readouterr().out)) == 2
    assert len(traced) == len(set(traced))
