"""What has to move together: the packages that differ between two environments, in units.

A package that moves takes along what its new version needs, and what breaks with it. Only needs that each environment
meets by itself count: the project installs exact versions, which do not all agree with what packages declare.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from experiments.blame.pins import Pin, Pins, normalized

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    Needs = Mapping[str, list[Requirement]]


class Unit(NamedTuple):
    """Packages that move together. along: all that moves if they do, these and what they take along."""

    names: frozenset[str]
    along: frozenset[str]


def moved(good: Pins, bad: Pins) -> list[str]:
    """Return the packages whose versions differ, or that only one environment has."""
    return sorted(name for name in good.keys() | bad.keys() if _version(good, name) != _version(bad, name))


def units(good: Pins, bad: Pins, needs_of_good: "Needs", needs_of_bad: "Needs", first: Sequence[str]) -> list[Unit]:
    """Return the units in an order in which each follows those that it takes along.

    first: packages that are more likely to be the cause; they and what they take along are at the beginning.
    """
    names = moved(good, bad)
    takes: dict[str, set[str]] = {name: set() for name in names}
    for name in names:
        for other in names:
            if _breaks(needs_of_bad.get(name, []), other, bad, good):
                takes[name].add(other)
            if _breaks(needs_of_good.get(other, []), name, good, bad):
                takes[name].add(other)
    along = {name: _reached(name, takes) for name in names}
    found = {Unit(frozenset(one for one in along[name] if along[one] == along[name]), along[name]) for name in names}
    likely = frozenset().union(*(along[name] for name in names if name in first))
    return sorted(found, key=lambda unit: (not unit.names <= likely, len(unit.along), sorted(unit.names)))


def likely_units(found: Sequence[Unit], first: Sequence[str]) -> int:
    """Return how many units at the beginning have a package of ``first``, or are taken along by one."""
    places = [place for place, unit in enumerate(found, 1) if unit.names & set(first)]
    return max(places, default=0)


def mixed(good: Pins, bad: Pins, names: frozenset[str]) -> Pins:
    """Return the pins of ``good`` with ``names`` as in ``bad``."""
    kept = {name: pin for name, pin in good.items() if name not in names}
    return kept | {name: bad[name] for name in names if name in bad}


def _breaks(needs: "Sequence[Requirement]", name: str, own: Pins, other: Pins) -> bool:
    """Return whether the version of ``name`` in ``own`` meets all ``needs`` of it, and that in ``other`` does not."""
    of_name = [need for need in needs if normalized(need.name) == name]
    return bool(of_name) and _met(of_name, own.get(name)) and not _met(of_name, other.get(name))


def _met(needs: "Sequence[Requirement]", pin: Pin | None) -> bool:
    return pin is not None and all(need.specifier.contains(pin.version, prereleases=True) for need in needs)


def _reached(name: str, takes: Mapping[str, set[str]]) -> frozenset[str]:
    found, open_ = {name}, [name]
    while open_:
        new = takes[open_.pop()] - found
        found |= new
        open_ += new
    return frozenset(found)


def _version(pins: Pins, name: str) -> str:
    return pins[name].version if name in pins else ""
