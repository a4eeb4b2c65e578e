"""The bisection: the units that are needed for the change, with as few tests as possible."""

from collections.abc import Callable, Sequence
from math import ceil, log2
from typing import Literal, NamedTuple

from experiments.blame.units import Unit

Side = Literal["good", "bad"] | None
"""As which end an environment behaves; None: as neither, or it cannot be tested."""
Test = Callable[[frozenset[str], int], Side]
"""Tests the environment with these packages moved; the number is that of steps that follow at most."""


class Found(NamedTuple):
    """The packages without any of which the change is gone. sure: each is needed; else it is at least one of them."""

    names: frozenset[str]
    sure: bool


def search(units: Sequence[Unit], likely: int, test: Test) -> Found:
    """Return the packages that must move together for the change.

    units: each follows what it takes along; all of them moved is bad, none moved is good. likely: the first test is
    whether the first ``likely`` units suffice.
    """
    needed: list[Unit] = []
    candidates, sure = list(units), True
    while True:
        low, high, clear = _bisect(candidates, _along(needed), likely if not needed else 0, test)
        sure = sure and clear
        needed += candidates[low:high]
        along = _along(needed)
        candidates = [unit for unit in candidates[:low] if not unit.names <= along]
        if not candidates or test(along, 0) == "bad":
            return Found(frozenset(name for unit in needed for name in unit.names), sure)


def _bisect(units: Sequence[Unit], base: frozenset[str], first: int, test: Test) -> tuple[int, int, bool]:
    """Return the place of the unit that makes the change: none before ``low`` does, all before ``high`` do.

    More than one unit is between them if no environment between them can be tested; the third value is False then.
    """
    low, high = 0, len(units)
    while high - low > 1:
        middles = sorted(range(low + 1, high), key=lambda place: (place != first, abs(2 * place - low - high)))
        first = 0
        for middle in middles:
            side = test(base | _along(units[:middle]), ceil(log2(max(middle - low, high - middle))) + 1)
            if side:
                low, high = (low, middle) if side == "bad" else (middle, high)
                break
        else:
            return low, high, False
    return low, high, True


def _along(units: Sequence[Unit]) -> frozenset[str]:
    return frozenset(name for unit in units for name in unit.along)
