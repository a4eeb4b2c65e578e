"""Find the package that caused a change: create and compare two environments, bisect the packages that differ."""

from collections.abc import Callable, Sequence

from experiments.blame.change_log import change_log_line
from experiments.blame.environment import Environment, EnvironmentNotCreated, create_environment
from experiments.blame.observation import Difference, Observation, find_difference
from experiments.blame.observe import Method
from experiments.blame.package_groups import count_likely_groups, differing_packages, group_packages, mix_pins
from experiments.blame.pins import Pins
from experiments.blame.search import Side, search
from experiments.errors import InputError
from experiments.results.provenance import LIBRARIES
from experiments.results.schema import Record

Observe = Callable[[Method, Environment], Observation]
Say = Callable[[str], None]


class Step(Record):
    """One step of the bisection.

    updated: packages that had their new versions in this step. value: the observed status, outcome or value, in words.
    result_of: the environment, good or bad, that has the same result; None: neither has this result, or the step could
    not be tested.
    """

    updated: tuple[str, ...]
    value: str
    result_of: Side


class Culprit(Record):
    """A package that caused the change. before, now: its versions; empty where it is not installed."""

    package: str
    before: str
    now: str
    change_log: str


class Blame(Record):
    """The difference between two environments, the packages that cause the difference, and the steps that found them.

    differs: the difference in one line, such as 'xxl-sgd: outcome fits → oom'. method: how the rows were observed.
    packages_changed: number of packages whose versions differ. groups: number of groups of packages that can change
    version separately. sure: True: every package in ``culprits`` is needed for the change. False: at least one of them
    is needed.
    """

    differs: str
    method: Method
    packages_changed: int
    groups: int
    culprits: tuple[Culprit, ...]
    sure: bool
    steps: tuple[Step, ...]


def blame(good: Pins, bad: Pins, observe: Observe, methods: Sequence[Method], statement: str | None, say: Say) -> Blame:
    """Return the packages that cause the change from ``good`` to ``bad``.

    observe: function that observes the rows in an environment. methods: ways to observe rows, tried in this order.
    statement: the change to explain, as the id of a statement or as ROW/QUANTITY; None: the first change that is found.
    say: function that prints a line of progress.

    Raises InputError if nothing differs, or if an environment cannot be created or observed.
    """
    names = differing_packages(good, bad)
    if not names:
        raise InputError("--good and --bad: all packages have the same versions; allowed: environments that differ")
    say(f"packages that differ: {len(names)}; creating both environments")
    good_and_bad = [_create_requested_environment(pins, flag) for pins, flag in ((good, "--good"), (bad, "--bad"))]
    difference, used = _find_difference(good_and_bad, observe, methods, statement, say)
    groups = group_packages(good, bad, good_and_bad[0].requirements(), good_and_bad[1].requirements(), LIBRARIES)
    say(f"{difference.sentence} (by {used}); groups of packages that can change version separately: {len(groups)}")
    steps: list[Step] = []

    def test_packages(chosen: frozenset[str], steps_left: int) -> Side:
        step = _run_step(mix_pins(good, bad, chosen), chosen, good_and_bad, observe, used, difference)
        steps.append(step)
        result_of = f"as with --{step.result_of}" if step.result_of else "as with neither environment"
        tested = f"new versions of {len(chosen)} of {len(names)} packages"
        say(f"step {len(steps)} (at most {steps_left} more), {tested}: {step.value}, {result_of}")
        return step.result_of

    result = search(groups, count_likely_groups(groups, LIBRARIES), test_packages)
    return Blame(
        differs=difference.sentence,
        method=used,
        packages_changed=len(names),
        groups=len(groups),
        culprits=tuple(_culprit(name, good_and_bad) for name in sorted(result.names)),
        sure=result.sure,
        steps=tuple(steps),
    )


def _create_requested_environment(pins: Pins, flag: str) -> Environment:
    try:
        return create_environment(pins)
    except EnvironmentNotCreated as error:
        raise InputError(f"{flag}: cannot be installed: {error}") from None


def _find_difference(
    good_and_bad: Sequence[Environment], observe: Observe, methods: Sequence[Method], statement: str | None, say: Say
) -> tuple[Difference, Method]:
    problems = []
    for method in methods:
        say(f"observing both environments by {method}")
        try:
            good, bad = (observe(method, environment) for environment in good_and_bad)
        except InputError as problem:
            problems.append(f"{method}: {problem}")
            continue
        if difference := find_difference(good, bad, statement):
            return difference, method
        problems.append(f"{method}: nothing differs")
    raise InputError("; ".join(problems))


def _run_step(
    pins: Pins,
    chosen: frozenset[str],
    good_and_bad: Sequence[Environment],
    observe: Observe,
    method: Method,
    difference: Difference,
) -> Step:
    try:
        observed = observe(method, create_environment(pins, good_and_bad))
    except (EnvironmentNotCreated, InputError) as problem:
        return Step(updated=tuple(sorted(chosen)), value=f"not testable ({problem})", result_of=None)
    return Step(updated=tuple(sorted(chosen)), value=difference.value(observed), result_of=difference.side(observed))


def _culprit(name: str, good_and_bad: Sequence[Environment]) -> Culprit:
    before, now = (one.pins[name].version if name in one.pins else "" for one in good_and_bad)
    package = good_and_bad[1].packages().get(name)
    return Culprit(
        package=name,
        before=before,
        now=now,
        change_log=change_log_line(package, now) if package else "",
    )
