"""The card, size, rows and run id of a run, and the options that do not match the suite or the machine."""

from dataclasses import replace

import pytest

from experiments.errors import InputError
from experiments.run_options import RunOptions
from experiments.runners.resolve import datasets_of, resolve
from experiments.suites.models import models
from experiments.suites.suite import Scale
from tests.support.results import in_memory
from tests.support.runners.rows import GPU, T4, node

OPTIONS = RunOptions(suite="lab")
BIG = GPU.__class__(0, "NVIDIA H200", 139.8, "GPU-2")
DDP = {"devices": 2, "strategy": "ddp"}


def suite_for(*cards, **rows):
    """Return a suite for these cards, with rows a and b; ``rows``: settings by row."""
    made = in_memory.suite([{"id": row, "settings": {"batch_size": 2, **rows.get(row, {})}} for row in "ab"])
    return made.model_copy(update={"cards": cards or made.cards})


def resolved(options=OPTIONS, suite=None, machine=None):
    return resolve(options, suite or suite_for(), machine or node(GPU))


@pytest.mark.parametrize(
    ("gpus", "card", "size"),
    [
        ([], "v100_32gb", "tiny"),
        ([GPU], "a100_80gb", "full"),
        ([GPU, T4], "a100_80gb", "full"),
        ([BIG], "v100_32gb", "full"),
        ([T4], "v100_32gb", "tiny"),
    ],
)
def test_the_default_card_is_that_of_the_machine_or_the_first_that_the_machine_can_emulate(gpus, card, size):
    found = resolved(suite=suite_for("v100_32gb", "a100_80gb"), machine=node(*gpus))
    assert (found.card, found.size) == (card, size)


def test_a_card_that_the_gpu_can_emulate_is_preferred_to_the_first_card_of_the_suite():
    assert resolved(suite=suite_for("h100_94gb", "a100_80gb"), machine=node(GPU.__class__(0, "X", 80, ""))).card == (
        "a100_80gb"
    )


def test_a_requested_card_and_a_requested_size_are_kept():
    options = RunOptions(suite="lab", card="a100_80gb", size="tiny")
    found = resolved(options, suite_for("v100_32gb", "a100_80gb"))
    assert (found.card, found.size) == ("a100_80gb", "tiny")
    with pytest.raises(InputError, match="unknown card 'h100_94gb'"):
        resolved(RunOptions(suite="lab", card="h100_94gb"))


@pytest.mark.parametrize(("asked", "found"), [((), ("a", "b")), (("b", "a"), ("a", "b")), (("b",), ("b",))])
def test_the_requested_rows_run_in_the_order_of_the_suite(asked, found):
    assert resolved(RunOptions(suite="lab", rows=asked)).rows == found


def test_the_error_for_a_row_that_the_card_does_not_have_lists_the_allowed_rows():
    suite = suite_for("a100_80gb", "v100_32gb")
    suite = suite.model_copy(
        update={"rows": (suite.rows[0], suite.rows[1].model_copy(update={"cards": ("v100_32gb",)}))}
    )
    assert resolved(suite=suite).rows == ("a",)
    with pytest.raises(InputError, match=r"suite lab: row 'b' is not for a100_80gb; allowed: a$"):
        resolved(RunOptions(suite="lab", rows=("a", "b")), suite)


def test_a_tiny_model_has_no_pretrained_weights():
    assert resolved(RunOptions(weights="pretrained", size="full")).size == "full"
    assert resolved(RunOptions(weights="random", size="tiny")).size == "tiny"
    with pytest.raises(InputError, match="weights pretrained: a tiny model has no pretrained weights"):
        resolved(RunOptions(weights="pretrained", size="tiny"))


@pytest.mark.parametrize("run_id", ["latest", "../outside", ".hidden", "a b", ""])
def test_a_run_id_that_cannot_name_a_folder_is_rejected(run_id):
    with pytest.raises(InputError, match="allowed: letters, digits"):
        resolved(RunOptions(run_id=run_id))


def test_a_run_has_the_requested_id_or_an_id_that_is_made_from_its_options():
    assert resolved(RunOptions(suite="lab", run_id="my.run_1-a")).run_id == "my.run_1-a"
    assert resolved().run_id.startswith("lab-a100_80gb-full")


def resolved_with_gpus(count, suite):
    return resolved(RunOptions(suite="lab", gpus_per_node=count), suite, node(GPU, GPU))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_row_of_several_ranks_needs_more_than_one_gpu(strategy):
    suite = suite_for(b={"devices": 4, "strategy": strategy})
    for count in (None, 2):
        assert datasets_of(resolved_with_gpus(count, suite), suite) == {"gourmetgram-captions"}
    with pytest.raises(
        InputError,
        match=f"--gpus-per-node 1: row 'b' of suite lab would have 1 rank, but {strategy} needs more; allowed: 2",
    ):
        datasets_of(resolved_with_gpus(1, suite), suite)


def test_a_row_of_one_rank_needs_one_gpu_and_reads_its_own_data_set():
    suite = suite_for(b={"engine": "hf_trainer", "model": "gpt-neo-1.3b", "dataset": "imdb"})
    assert datasets_of(resolved_with_gpus(1, suite), suite) == {"gourmetgram-captions", "imdb"}
    with pytest.raises(InputError, match="--gpus-per-node 0: allowed: 1 or more"):
        datasets_of(resolved_with_gpus(0, suite), suite)


def scaled_suite():
    """Return a suite whose row a has a twin for a seventh of an H100, with a model that is not published."""
    facts = models()["blip2-opt-2.7b"].model_copy(update={"hub": ""})
    scale = Scale(scale="12gb", cards=("h100_1g_12gb",), rows={"a": {"model": "small"}})
    return suite_for("a100_80gb").model_copy(update={"scales": (scale,), "models": {"small": facts}})


def test_on_a_gpu_for_which_the_suite_has_smaller_twins_of_rows_the_default_card_is_this_gpu():
    instance = GPU.__class__(0, "NVIDIA H100 NVL MIG 1g.12gb", 10.75, "MIG-1")
    found = resolved(suite=scaled_suite(), machine=node(instance))
    assert (found.card, found.size) == ("h100_1g_12gb", "full")


def test_pretrained_weights_are_rejected_for_the_smaller_twin_of_a_row():
    options = RunOptions(suite="lab", card="h100_1g_12gb", size="full", weights="pretrained")
    with pytest.raises(InputError) as rejected:
        resolved(options, scaled_suite())
    assert str(rejected.value) == (
        "weights pretrained: row 'a' is scaled to 12 GB, and its model small has no pretrained weights; allowed: random"
    )
    assert resolved(replace(options, rows=("b",)), scaled_suite()).rows == ("b",)
