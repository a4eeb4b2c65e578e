"""The parts of a check. Each part is one command that runs with one set of versions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from experiments.errors import InputError
from experiments.semester.versions import Versions
from experiments.suites.suite import suite_named
from provision.choices import ImageVariant

PartKind = Literal["environment", "miniatures", "predictions", "lease"]
"""What a part does: it creates the environment of a set of versions, runs rows with tiny models (miniatures), only
predicts rows, or runs rows at full size on a lease."""
SETS_WITH_IMAGE = get_args(ImageVariant)
"""Sets of versions for which an image for leased machines exists."""


class CheckPart(NamedTuple):
    """A part of a check. suite, card: empty for an environment, and for a lease, on which all suites run."""

    versions: Versions
    kind: PartKind
    suite: str = ""
    card: str = ""

    @property
    def name(self) -> str:
        """Return the name of the part and of its folder."""
        return "-".join(filter(None, (self.versions, self.kind, self.suite, self.card)))

    @property
    def title(self) -> str:
        """Return the name of the part for progress lines and messages."""
        rows = f" of {self.suite} for {self.card}" if self.suite else ""
        return f"{self.versions} versions: {self.kind}{rows}"


class CheckLease(NamedTuple):
    """The lease of a check: site, node type, hours for each set of versions, and maximum hours in total.

    end_when_idle: options of `testbed reproduce` that let the lease end itself.
    """

    site: str
    node_type: str
    hours: float
    max_hours: float
    end_when_idle: tuple[str, ...] = ()


def parts_of(sets: Sequence[Versions], suites: Sequence[str], lease: CheckLease | None) -> list[CheckPart]:
    """Return the parts for each set of versions: its environment, miniatures and predictions; then those on a lease.

    Miniatures are run and predicted for the first card of a suite, because miniatures for its other cards would be the
    same. Its other cards are only predicted, which needs the versions "current" or newer. Raises InputError if the
    leases would be longer than the budget.
    """
    parts = []
    for versions in sets:
        parts.append(CheckPart(versions, "environment"))
        for suite in map(suite_named, suites):
            first, *others = suite.cards
            parts.append(CheckPart(versions, "miniatures", suite.suite, first))
            if versions != "as-taught":
                parts += [CheckPart(versions, "predictions", suite.suite, card) for card in others]
    leased = [CheckPart(versions, "lease") for versions in sets if lease and versions in SETS_WITH_IMAGE]
    if lease and len(leased) * lease.hours > lease.max_hours:
        raise InputError(
            f"--max-hours {lease.max_hours:g}: {len(leased)} leases of {lease.hours:g} hours take longer;"
            " allowed: shorter --hours, or fewer --versions"
        )
    return parts + leased


def command_of_part(
    part: CheckPart, python: Path, results: Path, suites: Sequence[str], lease: CheckLease | None
) -> list[str]:
    """Return the command line of a part; its runs are written to folders in ``results``.

    lease: the lease of the check; None for a part on this machine.
    """
    testbed = [str(python), "-m", "experiments"]
    if part.kind == "lease":
        assert lease
        node = ["--site", lease.site, "--node-type", lease.node_type]
        length = ["--hours", f"{lease.hours:g}", "--max-hours", f"{lease.hours:g}", "--yes"]
        run_options = ["--versions", part.versions, "--results", str(results)]
        return [*testbed, "reproduce", *suites, *node, *length, *lease.end_when_idle, *run_options]
    prediction_options = ["--predict-only"] if part.kind == "predictions" else []
    if part.versions == "as-taught":
        prediction_options.append("--no-predict")
    run = ["run", part.suite, "--card", part.card, "--size", "tiny", "--results", str(results)]
    return [*testbed, *run, *prediction_options]
