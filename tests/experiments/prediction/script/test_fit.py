"""The search for the largest batch size of a script, and the command lines with other batch sizes."""

from types import SimpleNamespace

import pytest

from experiments.errors import InputError
from experiments.prediction.script.fit import fit_as_data, fit_batches, read_batch, set_batch
from experiments.prediction.script.record import CardPrediction

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

    def trace(batch):
        traced.append(batch)
        needs = (5.0 + batch, 6.0 + batch)
        return [SimpleNamespace(cards=(card_prediction(need),), peak_gib=need) for need in needs]

    found = fit_batches(8, trace)
    assert (found.largest, found.largest_borderline) == (92, 94)
    assert len(traced) == len(set(traced)) <= 8
    data = fit_as_data(found)
    assert (data["largest_batch"], data["card"]) == (92, "big")
    assert {one["batch"]: one["outcome"] for one in data["batches"]}[94] == "borderline"


def card_prediction(need):
    return CardPrediction(card="big", usable_gib=100.0, needed_gib=need, reserved_gib=need, retries=0, failure=None)
