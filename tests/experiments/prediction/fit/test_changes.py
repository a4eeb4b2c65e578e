"""Changes that are ruled out because all of them together do not fit. A training is the set of its changes."""

import itertools

import pytest

from experiments.prediction.changes import Combination, RuledOut

NAMES = ("a", "b", "FSDP over 2 GPUs", "FSDP over 4 GPUs", "c")
EXCLUDED = frozenset({"b", "c"})
"""Two changes that exclude each other."""
Training = frozenset[str]


def changes_of(training: Training) -> list[tuple[str, Training]]:
    """Return the changes that are possible: of those with GPUs, only one with more GPUs than the training has."""
    changes = []
    for name in NAMES:
        more = name.startswith("FSDP") and any(one.startswith("FSDP") and one >= name for one in training)
        if name not in training and not more and not {*training, name} >= EXCLUDED:
            kept = {one for one in training if not (one.startswith("FSDP") and name.startswith("FSDP"))}
            changes.append((name, frozenset({*kept, name})))
    return changes


@pytest.fixture
def ruled_out():
    """Return a function that makes the rules for a need in GiB by training, and the combinations that are tried."""
    tried: list[Combination[Training]] = []

    def make(fits) -> RuledOut[Training]:
        def may_fit(combination: Combination[Training]) -> bool:
            tried.append(combination)
            return fits(combination.training)

        return RuledOut(frozenset(), changes_of, may_fit)

    return make, tried


def test_two_combinations_show_that_nothing_fits_if_two_changes_exclude_each_other(ruled_out):
    make, tried = ruled_out
    rules = make(lambda training: False)
    assert rules.rule_out_all(NAMES)
    assert [one.name for one in tried] == ["c; FSDP over 4 GPUs; a", "b; FSDP over 4 GPUs; a"]
    assert all(rules.covers(pair) for pair in itertools.combinations(NAMES, 2) if set(pair) != EXCLUDED)
    assert not rules.covers(["b", "c"])


def test_changes_are_not_ruled_out_if_one_combination_fits(ruled_out):
    make, tried = ruled_out
    assert not make(lambda training: "b" in training).rule_out_all(NAMES)
    assert len(tried) == 2


@pytest.mark.parametrize("fitting", [{"a", "c"}, {"b"}, {"a", "FSDP over 4 GPUs"}, {"a", "b", "FSDP over 4 GPUs"}])
def test_no_combination_that_fits_is_ever_ruled_out(ruled_out, fitting):
    make, _ = ruled_out
    rules = make(lambda training: training >= fitting)
    for count in (1, 2, 3):
        for names in itertools.combinations(NAMES, count):
            if not rules.covers(names):
                rules.rule_out(names, NAMES)
            assert not (rules.covers(names) and {*names} >= fitting)


def test_4_bit_weights_rule_out_only_combinations_with_them():
    """They can need more memory, so each change is also tried without them."""
    names = ("bf16", "LoRA", "4-bit weights and LoRA")

    def possible(training: Training) -> list[tuple[str, Training]]:
        return [(name, training | {name}) for name in names if name not in training]

    def fits(combination: Combination[Training]) -> bool:
        return combination.training == {"bf16", "LoRA"}

    rules = RuledOut(frozenset[str](), possible, fits)
    assert not rules.rule_out_all(names)
    assert rules.covers(["bf16", "4-bit weights and LoRA"])
    assert not rules.covers(["bf16", "LoRA"])


def test_changes_that_exclude_each_other_rule_out_nothing_and_a_combination_is_tried_once(ruled_out):
    make, tried = ruled_out
    rules = make(lambda training: False)
    assert not rules.rule_out(["b", "c"], NAMES)
    assert rules.rule_out(["a"], ["a"])
    assert rules.rule_out(["a"], ["a"])
    assert [one.name for one in tried] == ["a"]
