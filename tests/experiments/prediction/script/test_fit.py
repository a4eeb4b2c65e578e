"""The search for the largest batch size of a script, and the command lines with other batch sizes."""

import json

import pytest

from experiments.cli.app import main
from experiments.cli.output import console
from experiments.errors import InputError
from experiments.prediction.script import trace
from experiments.prediction.script.fit import (
    SharedTraces,
    fit_as_data,
    fit_view,
    largest_batches_view,
    read_batch,
    set_batch,
)
from experiments.suites.cards import parse_card_list
from tests.experiments.prediction.script.test_speed import prediction
from tests.support.runners.fake_predictions import card_prediction

FLAG = "--batch"


@pytest.mark.parametrize(
    ("words", "batch", "changed"),
    [
        (["python", "x.py", "--batch", "4", "-v"], 4, ["python", "x.py", "--batch", "9", "-v"]),
        (["python", "x.py", "--batch=4"], 4, ["python", "x.py", "--batch=9"]),
        (["python", "x.py", "--batches=4"], None, ["python", "x.py", "--batches=4", "--batch", "9"]),
    ],
)
def test_the_batch_size_is_read_and_replaced_in_the_command_line(words, batch, changed):
    assert read_batch(words, FLAG) == batch
    assert set_batch(words, FLAG, 9) == changed


@pytest.mark.parametrize("value", ["0", "x", "", "4097"])
def test_a_batch_size_that_is_not_a_number_is_an_error(value):
    with pytest.raises(InputError, match=f"--batch {value}: not a batch size; allowed: 1 to 4096"):
        read_batch(["python", "x.py", f"--batch={value}"], FLAG)


def test_the_largest_batch_for_the_rank_that_needs_most_is_found_with_few_traces():
    traced = []

    def trace(batch, cards):
        traced.append(batch)
        return [predicted(cards, 5.0 + 0.7 * batch), predicted(cards, 6.0 + 0.7 * batch)]

    (found,) = SharedTraces(["a100_80gb"], trace).fit_batches(8, lambda batch: batch)
    assert (found.largest, found.largest_borderline) == (101, 103)
    assert len(traced) == len(set(traced)) <= 8
    data = fit_as_data(found)
    assert (data["largest_batch"], data["card"]) == (101, "a100_80gb")
    assert {one["batch"]: one["outcome"] for one in data["batches"]}[103] == "borderline"


def test_the_largest_batch_is_found_for_several_cards_whose_traces_are_shared():
    """An H100 has other kernels than an A100, which need twice as much memory here."""
    traced = []

    def trace(batch, cards):
        traced.append((batch, cards))
        return [predicted(cards, batch * (2.0 if "h100_94gb" in cards else 1.0))]

    cards = ["h100_94gb", "40GiB", "a100_80gb", "3GiB"]
    alone = [SharedTraces([card], trace).fit_batches(8, lambda batch: batch)[0] for card in cards]
    traced.clear()
    found = SharedTraces(cards, trace).fit_batches(8, lambda batch: batch)
    assert [one.card.card for one in found] == cards
    assert [one.largest for one in found] == [one.largest for one in alone] == [45, 38, 77, 2]
    assert {group for _, group in traced} == {("h100_94gb",), ("40GiB", "a100_80gb", "3GiB")}
    assert len(traced) == len(set(traced)) < sum(len(one.predictions) for one in alone)


def test_the_table_marks_the_largest_batch_that_fits_and_says_what_is_likely_if_it_is_borderline(capsys):
    def trace(batch, cards):
        return [predicted(cards, 0.5 * batch)]

    traces = SharedTraces(["a100_80gb"], trace)
    (found,) = traces.fit_batches(158, lambda batch: batch)
    console().print(fit_view(found, "--bs"))
    printed = " ".join(capsys.readouterr().out.split())
    assert "largest batch that fits: --bs 154; batches up to 157 probably fit (borderline)" in printed
    assert "154 77.00 77.00 +1.60 fits largest that fits" in printed
    assert "157 78.50 78.50 +0.10 borderline probably fits" in printed
    assert "158 79.00 79.00 -0.40 borderline probably does not fit" in printed


def test_several_cards_are_shown_in_one_table_with_the_largest_batch_for_each(capsys):
    traces = SharedTraces[int](["a100_80gb", "3GiB"], lambda batch, cards: [predicted(cards, 2.0 * batch + 1.0)])
    console().print(largest_batches_view(traces.fit_batches(8, lambda batch: batch), "--bs"))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "largest --bs that fits each card, GiB on one GPU"
    assert lines[3] == "3GiB none 3.00 3.00 -0.55 oom not even --bs 1 fits"
    assert lines[4] == "a100_80gb 38 77.00 77.00 +1.60 fits"


@pytest.fixture
def asked(monkeypatch):
    """Record the batch and the cards of each trace; every batch needs 2 GiB for each sample."""
    asked = []

    def trace_script(words, cards, say, options):
        asked.append((words[-1], tuple(cards)))
        return [predicted(cards, 2.0 * int(words[-1]))]

    monkeypatch.setattr(trace, "trace_script", trace_script)
    return asked


def test_the_command_fit_answers_for_several_cards(asked, capsys):
    words = ["fit", "--batch-flag", "--bs", "--json"]
    assert main([*words, "--card", "10GiB,t4_16gb", "--", "python", "x.py"]) == 0
    assert [(one["card"], one["largest_batch"]) for one in json.loads(capsys.readouterr().out)] == [
        ("10GiB", 4),
        ("t4_16gb", 6),
    ]
    assert main([*words, "--card", "all", "--", "python", "x.py"]) == 0
    assert {one["card"] for one in json.loads(capsys.readouterr().out)} == {*parse_card_list("all")}
    assert main([*words, "--card", "t4_16gb", "--", "python", "x.py"]) == 0
    assert json.loads(capsys.readouterr().out)["largest_batch"] == 6
    assert len(asked) == len({*asked}) + len([one for one in asked if one[1] == ("t4_16gb",)]) // 2


def predicted(cards, need):
    return prediction(dict.fromkeys(cards), need).model_copy(
        update={"cards": tuple(card_prediction(card, need) for card in cards)}
    )
