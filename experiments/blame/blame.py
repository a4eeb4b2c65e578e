"""Find the package that did it: create the ends, see what differs between them, bisect the packages that differ."""

from collections.abc import Callable, Sequence

from experiments.blame.change_log import line_of_change_log
from experiments.blame.environment import CannotCreate, Environment, created
from experiments.blame.observation import Difference, Observation, difference
from experiments.blame.observe import Means
from experiments.blame.pins import Pins
from experiments.blame.search import Side, search
from experiments.blame.units import likely_units, mixed, moved, units
from experiments.errors import InputError
from experiments.results.provenance import LIBRARIES
from experiments.results.schema import Record

Observe = Callable[[Means, Environment], Observation]
Say = Callable[[str], None]


class Step(Record):
    """One step: the packages that were moved, and what was seen. like: good or bad; None: neither, or not testable."""

    moved: tuple[str, ...]
    value: str
    like: Side


class Culprit(Record):
    """A package that did it. before, now: its versions; empty where it is not installed."""

    package: str
    before: str
    now: str
    change_log: str


class Blame(Record):
    """What differs, the packages without any of which it does not, and the steps that showed it."""

    differs: str
    means: Means
    packages_moved: int
    units: int
    culprits: tuple[Culprit, ...]
    sure: bool
    steps: tuple[Step, ...]


def blame(good: Pins, bad: Pins, observe: Observe, means: Sequence[Means], statement: str | None, say: Say) -> Blame:
    """Return which packages made the change between two environments. ``means`` are tried in their order.

    Raises InputError if nothing differs, or if an end cannot be created or observed.
    """
    names = moved(good, bad)
    if not names:
        raise InputError("--good and --bad: have the same versions of all packages")
    say(f"{len(names)} packages differ; creating both environments")
    ends = [_end(pins, flag) for pins, flag in ((good, "--good"), (bad, "--bad"))]
    found, used = _difference(ends, observe, means, statement, say)
    several = units(good, bad, ends[0].needs(), ends[1].needs(), LIBRARIES)
    say(f"{found.sentence} (by {used}); {len(several)} groups of packages can move by themselves")
    steps: list[Step] = []

    def test(chosen: frozenset[str], left: int) -> Side:
        step = _step(mixed(good, bad, chosen), chosen, observe, used, found)
        steps.append(step)
        like = f"like {step.like}" if step.like else "like neither"
        say(f"step {len(steps)}, at most {left} more: {len(chosen)} of {len(names)} moved: {step.value}, {like}")
        return step.like

    result = search(several, likely_units(several, LIBRARIES), test)
    return Blame(
        differs=found.sentence,
        means=used,
        packages_moved=len(names),
        units=len(several),
        culprits=tuple(_culprit(name, ends) for name in sorted(result.names)),
        sure=result.sure,
        steps=tuple(steps),
    )


def _end(pins: Pins, flag: str) -> Environment:
    try:
        return created(pins)
    except CannotCreate as error:
        raise InputError(f"{flag}: cannot be installed: {error}") from None


def _difference(
    ends: Sequence[Environment], observe: Observe, means: Sequence[Means], statement: str | None, say: Say
) -> tuple[Difference, Means]:
    problems = []
    for one in means:
        say(f"observing both ends by {one}")
        try:
            good, bad = (observe(one, end) for end in ends)
        except InputError as problem:
            problems.append(f"{one}: {problem}")
            continue
        if found := difference(good, bad, statement):
            return found, one
        problems.append(f"{one}: nothing differs")
    raise InputError("; ".join(problems))


def _step(pins: Pins, chosen: frozenset[str], observe: Observe, means: Means, found: Difference) -> Step:
    try:
        seen = observe(means, created(pins))
    except (CannotCreate, InputError) as problem:
        return Step(moved=tuple(sorted(chosen)), value=f"not testable ({problem})", like=None)
    return Step(moved=tuple(sorted(chosen)), value=found.value(seen), like=found.side(seen))


def _culprit(name: str, ends: Sequence[Environment]) -> Culprit:
    before, now = (end.pins[name].version if name in end.pins else "" for end in ends)
    package = ends[1].packages().get(name)
    return Culprit(
        package=name,
        before=before,
        now=now,
        change_log=line_of_change_log(package, now) if package else "",
    )
