"""The search for changes that make a custom training fit, in a traced program. Fake: the trace."""

import json
from types import SimpleNamespace

import pytest

from experiments.prediction import loop_fit
from experiments.prediction.custom import CustomTraining
from experiments.prediction.script.record import CardPrediction

TRAINING = CustomTraining("tiny-llama-1.1b", "a100_80gb", batch=4)


@pytest.fixture
def tried_changes(monkeypatch):
    """Return the changes that are tried. ``needs`` returns the memory of a job in the fake trace, GiB."""

    def run(needs) -> list[loop_fit.Attempt]:
        def trace(words, cards, say, options, name):
            need = needs(json.loads(words[-1]))
            card = CardPrediction(
                card=cards[0], usable_gib=78.6, needed_gib=need, reserved_gib=need, retries=0, failure=None
            )
            return [SimpleNamespace(cards=(card,), peak_gib=need)]

        monkeypatch.setattr(loop_fit, "trace_script", trace)
        messages: list[str] = []
        traces = loop_fit.trace_programs([TRAINING.card], messages.append)
        (fit,) = loop_fit.fit_program(TRAINING, traces)
        return loop_fit.try_changes(TRAINING, fit, traces)

    return run


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
