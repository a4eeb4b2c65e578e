"""The search for changes that make a custom training fit, in a traced program. Fake: the trace."""

import json
import re
from types import SimpleNamespace

import pytest

from experiments.cli.output import console
from experiments.prediction import loop_fit
from experiments.prediction.changes import RuledOut
from experiments.prediction.custom import CustomTraining
from experiments.prediction.loop import single_changes
from tests.support.runners.fake_predictions import card_prediction

TRAINING = CustomTraining("tiny-llama-1.1b", "a100_80gb", batch=4)


@pytest.fixture
def tried_changes(monkeypatch, labels):
    """Return the changes that are tried. ``needs`` returns the memory of a job in the fake trace, GiB."""

    def run(needs) -> list[loop_fit.Attempt]:
        labels.clear()

        def trace(words, cards, say, options, name):
            labels.append(name)
            need = needs(json.loads(words[-1]))
            card = card_prediction(cards[0], need, usable_gib=78.6)
            return [SimpleNamespace(cards=(card,), peak_gib=need)]

        monkeypatch.setattr(loop_fit, "trace_script", trace)
        messages: list[str] = []
        traces = loop_fit.ProgramTraces([TRAINING.card], messages.append)
        (fit,) = loop_fit.fit_program(TRAINING, traces)
        return loop_fit.try_changes(TRAINING, fit, traces)

    return run


@pytest.fixture
def labels() -> list[str]:
    """Return a list of the names of the fake traces."""
    return []


def test_a_training_that_fits_needs_no_change(tried_changes):
    assert tried_changes(lambda job: 10.0 + job["batch"]) == []


def test_pairs_of_changes_are_not_tried_if_a_single_change_fits(tried_changes):
    found = tried_changes(lambda job: 50.0 if job.get("checkpointing") else 100.0)
    assert [one.change for one in found if one.fits] == ["activation checkpointing"]
    assert not any(";" in one.change for one in found)


def test_pairs_of_changes_are_tried_if_no_single_change_fits(tried_changes):
    found = tried_changes(lambda job: 50.0 if job.get("checkpointing") and job.get("optimizer") == "sgd" else 100.0)
    assert [one.change for one in found if one.fits] == ["activation checkpointing; SGD"]
    assert found[-1].fits
    assert len([one.change for one in found]) == len({one.change for one in found})


def test_if_nothing_fits_only_combinations_of_all_changes_are_tried(tried_changes, labels, capsys):
    found = tried_changes(lambda job: 1000.0 + job.get("batch", 1))
    assert 1 <= len(found) <= 4
    predictions = {(one.batch_prediction.card.outcome, one.batch_prediction.card.needed_gib) for one in found}
    assert predictions == {("oom", 1001.0)}
    assert found[0].change.startswith("FSDP over 8 GPUs; ")
    console().print(loop_fit.attempts_table(found))
    assert "no change makes the training fit, not even all changes together" in capsys.readouterr().out
    assert "4-bit weights and LoRA, rank 16" in found[1].change
    assert len(labels) <= 3 + len(found)


def test_a_line_of_progress_says_how_many_changes_are_tried_and_how_long_that_takes(tried_changes, labels):
    tried_changes(lambda job: 50.0 if job.get("checkpointing") and job.get("optimizer") == "sgd" else 100.0)
    assert not any("(change" in label for label in labels[:3])
    single = next(label for label in labels if label.startswith("tiny-llama-1.1b, chunked loss"))
    assert re.fullmatch(r"tiny-llama-1.1b, chunked loss \(change \d+ of at most \d+, at most 0:00 left\)", single)


def test_pairs_are_ruled_out_by_all_changes_together(tried_changes, labels):
    """Only three changes together fit, so no pair does."""

    def needs(job) -> float:
        helps = job.get("checkpointing"), job.get("precision") == "bf16-true", job.get("optimizer") == "sgd"
        return 50.0 if all(helps) else 100.0

    found = tried_changes(needs)
    assert not any(one.fits for one in found)
    assert len(labels) < 70


@pytest.mark.parametrize(("loop", "possible"), [("plain", False), ("lightning", True), ("litgpt", True)])
def test_the_host_s_adamw_and_the_step_in_the_backward_pass_are_combined_only_if_both_stay(loop, possible):
    names = "optimizer in backward", "AdamW on the host"
    training = CustomTraining("tiny-llama-1.1b", "a100_80gb", loop=loop)
    for first, second in (names, names[::-1]):
        once = dict(single_changes(training))[first]
        twice = dict(single_changes(once))
        assert (second in twice) is possible
        if possible:
            assert (twice[second].optim, twice[second].optimizer_in_backward) == ("adamw_cpu", True)


@pytest.mark.parametrize("loop", ["trainer", "plain", "lightning", "litgpt"])
def test_no_change_moves_the_optimizer_s_state_from_the_host_to_the_gpu(loop):
    training = CustomTraining("tiny-llama-1.1b", "a100_80gb", loop=loop, optim="adamw_cpu")
    names = dict(single_changes(training))
    assert "SGD" in names
    assert not {"8-bit Adam", "8-bit AdamW", "4-bit AdamW of torchao"} & names.keys()


def test_a_combination_without_the_step_in_the_backward_pass_does_not_rule_it_out():
    training = CustomTraining("tiny-llama-1.1b", "a100_80gb", loop="plain")
    tried = []

    def may_fit(combination):
        tried.append(combination)
        return False

    RuledOut(training, single_changes, may_fit).rule_out(["optimizer in backward"], dict(single_changes(training)))
    assert tried
    for combination in tried:
        assert ("optimizer in backward" in combination.names) is combination.training.optimizer_in_backward
