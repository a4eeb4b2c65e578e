"""Tests of the memory that a training needs."""

from typing import Any, cast

import pytest

from experiments.prediction.peak import UNLIMITED, needed_bytes
from experiments.prediction.phantom.library import Phantom, Replay
from experiments.results.predictions import outcome_for_margin

ALLOCATED, RESERVED = 100_000, 150_000


class FakePhantom:
    """Fake of the phantom device.

    completing: capacities with which the training completes, as pairs of the memory that is reserved with all of them
    and the largest of them.
    """

    def __init__(self, *completing: tuple[int, int]) -> None:
        self._completing = (*completing, (RESERVED, UNLIMITED))

    def replay(self, capacity: int) -> Replay:
        reserved = [low for low, high in self._completing if low <= capacity <= high]
        failed = None if reserved else 7
        return Replay(ALLOCATED, (reserved or [capacity])[0], 0, 3, failed, 0)


def needed(*completing: tuple[int, int]) -> int:
    phantom = cast(Any, FakePhantom(*completing))
    return needed_bytes(cast(Phantom, phantom), phantom.replay(UNLIMITED))


@pytest.mark.parametrize(
    ("completing", "expected"),
    [
        pytest.param([], RESERVED, id="each cached block is needed"),
        pytest.param([(120_000, 149_999)], 120_000, id="one smaller course"),
        pytest.param([(120_000, 130_000), (130_001, 149_999)], 120_000, id="two smaller courses"),
        pytest.param(
            [(110_000, 120_000), (130_000, 149_999)], 130_000, id="a smaller capacity fits, one between does not"
        ),
        pytest.param([(ALLOCATED, 149_999)], ALLOCATED, id="nothing but the allocated memory"),
    ],
)
def test_the_needed_memory_is_the_capacity_from_which_on_the_training_completes(completing, expected):
    assert needed(*completing) == expected


@pytest.mark.parametrize(
    ("margin_gib", "completes", "outcome"),
    [
        (5.0, True, "fits"),
        (-5.0, False, "oom"),
        (1.5, True, "borderline"),
        (-1.5, False, "borderline"),
        pytest.param(-5.0, True, "borderline", id="completes, but not with a little more memory"),
        pytest.param(5.0, False, "borderline", id="does not complete, but with a little less memory"),
    ],
)
def test_the_outcome_is_borderline_near_the_needed_memory_and_where_the_replay_contradicts_it(
    margin_gib, completes, outcome
):
    assert outcome_for_margin(margin_gib, 80.0, completes) == outcome
