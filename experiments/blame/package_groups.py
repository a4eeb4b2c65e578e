"""Group the packages that differ between two environments: the versions of a group change together.

A new version of a package may require a new version of another package, or the old version of another package may not
allow the new version. Then both packages must change together. The project installs exact versions, and some of them
contradict the requirements that packages declare. Therefore, a requirement counts only if the environment that contains
the requirement also meets it.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from experiments.blame.pins import Pin, Pins, normalize_name

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    Requirements = Mapping[str, list[Requirement]]


class PackageGroup(NamedTuple):
    """Packages that change together. closure: these packages, and all packages whose new versions they require."""

    names: frozenset[str]
    closure: frozenset[str]


def differing_packages(good: Pins, bad: Pins) -> list[str]:
    """Return the packages whose versions differ, or that only one environment has."""
    return sorted(name for name in good.keys() | bad.keys() if _version(good, name) != _version(bad, name))


def group_packages(
    good: Pins, bad: Pins, good_requirements: "Requirements", bad_requirements: "Requirements", likely: Sequence[str]
) -> list[PackageGroup]:
    """Return the groups in an order in which each follows the groups that it requires.

    likely: packages that are more likely to be the cause; they and the groups that they require come first.
    """
    names = differing_packages(good, bad)
    required: dict[str, set[str]] = {name: set() for name in names}
    for name in names:
        for other in names:
            if _breaks_requirements(bad_requirements.get(name, []), other, bad, good):
                required[name].add(other)
            if _breaks_requirements(good_requirements.get(other, []), name, good, bad):
                required[name].add(other)
    closures = {name: _closure(name, required) for name in names}
    groups = {frozenset(one for one in names if closures[one] == closures[name]): closures[name] for name in names}
    found = [PackageGroup(group, closure) for group, closure in groups.items()]
    leading = frozenset().union(*(closures[name] for name in names if name in likely))
    return sorted(found, key=lambda group: (not group.names <= leading, len(group.closure), sorted(group.names)))


def count_likely_groups(groups: Sequence[PackageGroup], likely: Sequence[str]) -> int:
    """Return the smallest N so that the first N groups contain each package in ``likely`` that is in any group."""
    return max((number for number, group in enumerate(groups, 1) if group.names & set(likely)), default=0)


def mix_pins(good: Pins, bad: Pins, names: frozenset[str]) -> Pins:
    """Return the pins of ``good``, with the pins of ``bad`` in place of those of the packages in ``names``."""
    unchanged = {name: pin for name, pin in good.items() if name not in names}
    return unchanged | {name: bad[name] for name in names if name in bad}


def _breaks_requirements(requirements: "Sequence[Requirement]", name: str, pins: Pins, changed_pins: Pins) -> bool:
    """Return whether the package ``name`` meets the requirements with ``pins``, but not with ``changed_pins``."""
    of_name = [one for one in requirements if normalize_name(one.name) == name]
    return bool(of_name) and _meets_all(of_name, pins.get(name)) and not _meets_all(of_name, changed_pins.get(name))


def _meets_all(requirements: "Sequence[Requirement]", pin: Pin | None) -> bool:
    return pin is not None and all(one.specifier.contains(pin.version, prereleases=True) for one in requirements)


def _closure(name: str, required: Mapping[str, set[str]]) -> frozenset[str]:
    reached, pending = {name}, [name]
    while pending:
        new = required[pending.pop()] - reached
        reached |= new
        pending += new
    return frozenset(reached)


def _version(pins: Pins, name: str) -> str:
    return pins[name].version if name in pins else ""
