"""Find the groups that cause the change by bisection, with as few tests as possible."""

from collections.abc import Callable, Sequence
from math import ceil, log2
from typing import Literal, NamedTuple

from experiments.blame.package_groups import PackageGroup

Side = Literal["good", "bad"] | None
"""The environment (good or bad) whose result a tested environment has; None: neither, or it cannot be tested."""
PackageTest = Callable[[frozenset[str], int], Side]
"""Function that tests the good environment with the new versions of some packages, and returns its side.

Its arguments: the packages, and the maximum number of tests that follow."""


class Culprits(NamedTuple):
    """The packages that cause the change. sure: whether all of them are needed; if False, at least one is."""

    names: frozenset[str]
    sure: bool


def search(groups: Sequence[PackageGroup], likely_count: int, test: PackageTest) -> Culprits:
    """Return the packages whose new versions together cause the change.

    groups: all groups that differ, in an order in which each group follows the groups that it requires. If all groups
    have their new versions, the environment is the bad one. If all have their old versions, it is the good one.
    likely_count: the first test gives the first ``likely_count`` groups their new versions, and the other groups their
    old ones; 0 or all: half of the groups get their new versions.
    """
    needed: list[PackageGroup] = []
    candidates, sure = list(groups), True
    while True:
        low, high, clear = _bisect(candidates, _closure(needed), likely_count if not needed else 0, test)
        sure = sure and clear
        needed += candidates[low:high]
        closure = _closure(needed)
        candidates = [group for group in candidates[:low] if not group.names <= closure]
        if not candidates or test(closure, 0) == "bad":
            return Culprits(frozenset(name for group in needed for name in group.names), sure)


def _bisect(
    groups: Sequence[PackageGroup], base: frozenset[str], first: int, test: PackageTest
) -> tuple[int, int, bool]:
    """Return ``low`` and ``high``: the new versions of groups[:low] do not cause the change, those of groups[:high] do.

    base: packages that have their new versions in every test. first: number of groups that have their new versions in
    the first test; 0: half of the groups. The third value is True if groups[low:high] is a single group. It is False if
    these are several groups, because no test with only some of them gave the good or the bad result.
    """
    low, high = 0, len(groups)
    while high - low > 1:
        middles = sorted(range(low + 1, high), key=lambda place: (place != first, abs(2 * place - low - high)))
        first = 0
        for middle in middles:
            side = test(base | _closure(groups[:middle]), ceil(log2(max(middle - low, high - middle))) + 1)
            if side:
                low, high = (low, middle) if side == "bad" else (middle, high)
                break
        else:
            return low, high, False
    return low, high, True


def _closure(groups: Sequence[PackageGroup]) -> frozenset[str]:
    return frozenset(name for group in groups for name in group.closure)
