"""The attention kernels of each GPU generation, as in PyTorch's sdp_utils.cpp and CublasHandlePool.cpp."""

import pytest

from experiments.suites.attention_kernels import KIB, MIB, group_by_kernels, kernel_properties
from experiments.suites.cards import card_named, cards, parse_card_list

SMALL = 8 * MIB + 128 * KIB
GENERATIONS = {
    "3.7": (False, False, False, 0, SMALL, 50),
    "5.2": (False, True, False, 0, SMALL, 50),
    "6.0": (False, True, False, 0, SMALL, 50),
    "6.1": (False, True, False, 0, SMALL, 50),
    "7.0": (False, True, False, 0, SMALL, 70),
    "7.5": (False, True, False, 0, SMALL, 75),
    "8.0": (True, True, True, 0, SMALL, 80),
    "8.6": (True, True, True, 0, SMALL, 86),
    "8.9": (True, True, True, 0, SMALL, 86),
    "9.0": (True, True, True, 256, 32 * MIB, 80),
    "10.0": (True, True, True, 128, 32 * MIB, 80),
    "12.0": (True, True, True, 0, 32 * MIB, 120),
    "gfx908": (False, False, False, 0, 32 * MIB, 0),
    "gfx90a": (True, True, True, 0, 32 * MIB, 0),
    "gfx942": (True, True, True, 0, 128 * MIB, 0),
}
"""Which kernels exist: flash, memory-efficient, memory-efficient in bfloat16; the width of heads up to which
cuDNN's is preferred; the workspace, bytes; and the generation of PyTorch's own attention kernels."""
TRACES = 11
"""Kinds of kernels among all cards: before 7.0, 7.0, 7.5, 8.0, 8.6 and 8.9, 9.x, 10.x, 12.x, gfx90a, gfx942,
gfx908."""


@pytest.mark.parametrize(("generation", "expected"), GENERATIONS.items())
def test_the_generation_of_a_card_determines_attention_kernels_and_workspace(generation, expected):
    card = card_named("a100_80gb").model_copy(update={"compute_capability": generation, "multiprocessors": 7})
    kernels = kernel_properties(card)
    assert (
        kernels.flash,
        kernels.memory_efficient,
        kernels.memory_efficient_bfloat16,
        kernels.cudnn_width,
        kernels.workspace_bytes,
        kernels.attention_generation,
    ) == expected
    assert kernels.multiprocessors == 7


def test_the_generation_of_every_card_is_tested():
    assert {card.compute_capability for card in cards().values()} <= {*GENERATIONS}


def test_all_cards_need_one_trace_for_each_kind_of_kernels():
    groups = group_by_kernels(parse_card_list("all"))
    assert len(groups) == TRACES
    assert sorted(name for group in groups for name in group) == sorted(parse_card_list("all"))


def test_of_cards_with_the_same_kernels_the_one_with_most_multiprocessors_is_traced():
    for first, *others in group_by_kernels(parse_card_list("all")):
        assert all(card_named(first).multiprocessors >= card_named(name).multiprocessors for name in others)


def test_a_card_given_by_size_shares_the_trace_of_similar_cards():
    assert group_by_kernels(["24GiB", "h100_94gb", "a100_80gb"]) == [["24GiB", "a100_80gb"], ["h100_94gb"]]
