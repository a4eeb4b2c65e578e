"""`testbed blame`: the package whose new version changed a statement or a row."""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from experiments.cli.output import print_json, say
from experiments.cli.parsing.group import Commands
from experiments.cli.parsing.options import Json, SuiteFileOfRun
from experiments.errors import InputError, unknown_name_error
from provision.words import number_with_noun

if TYPE_CHECKING:
    from experiments.blame.blame import Blame
    from experiments.blame.observe import ObservationRequest

app = Commands()
ENVIRONMENTS_HELP = "as-taught, current, the folder of a run, or a file of exact versions"


@app.command()
def blame(
    target: Annotated[
        str,
        typer.Argument(
            metavar="SUITE/ROW_OR_STATEMENT",
            help="A row, ROW/QUANTITY for one value, or the id of a statement that compares rows.",
        ),
    ],
    good: Annotated[
        str, typer.Option(help=f"The environment before the change: {ENVIRONMENTS_HELP}.", metavar="VERSIONS")
    ],
    bad: Annotated[
        str, typer.Option(help="The environment after the change, given in the same way as --good.", metavar="VERSIONS")
    ],
    card: Annotated[str | None, typer.Option(help="GPU model of the rows; default: the suite's first.")] = None,
    by: Annotated[
        Literal["auto", "prediction", "miniature", "gpu"],
        typer.Option(
            help="Observe the rows by prediction, with tiny models, or at full size on this machine's GPU; auto: the "
            "first of these that shows a difference."
        ),
    ] = "auto",
    suite_file: SuiteFileOfRun = None,  # noqa: ARG001 - its callback uses it
    as_json: Json = False,
) -> None:
    """Find the package whose new version changed a statement or a row.

    Creates both environments in the cache folder, and observes the rows in each. If the observations differ, bisects
    the packages whose versions differ. If one package requires the new version of another package, both change
    together. Environments and observations are stored: after Ctrl-C, the same command resumes.
    """
    from experiments.blame.blame import blame as find_culprits
    from experiments.blame.observe import observe
    from experiments.blame.pins import pins_of
    from experiments.system.packages import require_packages

    require_packages("uv", "packaging")
    request = _observation_request(target, card)
    good_and_bad = (pins_of(good, "--good"), pins_of(bad, "--bad"))
    result = find_culprits(
        *good_and_bad, partial(observe, request), _observation_methods(by), request.compared, partial(say, stderr=True)
    )
    if as_json:
        print_json({"target": target, "card": request.card, "good": good, "bad": bad, **result.model_dump(mode="json")})
        return
    for line in _result_lines(result):
        say(line)


def _observation_request(target: str, card: str | None) -> "ObservationRequest":
    """Return which rows of ``target`` to observe, and which statement to compare. Raises InputError for a bad name."""
    from experiments.blame.observe import ObservationRequest
    from experiments.results.evaluate import claim_rows
    from experiments.suites.suite import suite_named

    name, _, id_ = target.partition("/")
    suite = suite_named(name)
    card = card or suite.cards[0]
    rows = [row.id for row in suite.rows_for(card)]
    claims = {claim.id: claim for claim in suite.claims}
    row = id_.partition("/")[0]
    if row in rows:
        return ObservationRequest(name, (row,), card, id_ if row != id_ else None)
    if id_ not in claims:
        raise unknown_name_error("row or statement", id_, [*rows, *claims], f"suite {name} on {card}")
    claim = claims[id_]
    return ObservationRequest(name, tuple(one for one in rows if one in claim_rows(claim)), card, claim.verdict_id)


def _observation_methods(by: str) -> tuple[Literal["prediction", "miniature", "gpu"], ...]:
    """Return the ways to observe rows, in order. Raises InputError for a GPU that this machine does not have."""
    from provision.hardware import gpus

    has_gpu = bool(gpus.driver_version())
    if by == "gpu" and not has_gpu:
        raise InputError("--by gpu: this machine has no GPU; allowed: prediction, miniature")
    all_methods: tuple[Literal["prediction", "miniature", "gpu"], ...] = ("prediction", "miniature", "gpu")
    return tuple(one for one in all_methods if by in ("auto", one) and (one != "gpu" or has_gpu))


def _result_lines(result: "Blame") -> list[str]:
    """Return what differs, the packages that caused it, and what their change logs say, each as one line."""
    packages = ", ".join(f"{one.package} {one.before or 'none'} → {one.now or 'none'}" for one in result.culprits)
    steps = number_with_noun(len(result.steps), "step")
    together = " together" if len(result.culprits) > 1 else ""
    if result.sure:
        culprits = f"{packages}{together} changed the result ({steps})"
    else:
        culprits = f"at least one of these changed the result, but they cannot be tested apart: {packages} ({steps})"
    lines = [result.differs, culprits]
    return lines + [f"change log of {one.package}: {one.change_log}" for one in result.culprits if one.change_log]
