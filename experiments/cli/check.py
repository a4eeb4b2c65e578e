"""`testbed check`: find all mistakes in a suite's file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.cli.output import print_json, say
from experiments.cli.parsing.group import Commands
from experiments.cli.parsing.options import Json
from experiments.errors import InputError
from provision.words import number_with_noun

if TYPE_CHECKING:
    from experiments.suites.mistakes import Mistake
    from experiments.suites.suite import Suite

app = Commands()
EXIT_BAD_INPUT = 2


@app.command()
def check(
    files: Annotated[list[Path] | None, typer.Argument(metavar="FILE", help="Files of your own suites.")] = None,
    template: Annotated[bool, typer.Option("--template", help="Print a template for a suite's file.")] = False,
    as_json: Json = False,
) -> None:
    """Check the files of your own suites: show all mistakes at once.

    Each mistake is shown with its line, its value and the allowed values. A suite without mistakes is summarized.
    Begin with testbed check --template > my_lab.yaml
    """
    from experiments.suites.document import read_document
    from experiments.suites.mistakes import suite_and_mistakes
    from experiments.suites.suite import TEMPLATE_FILE

    if template == bool(files):
        raise InputError("check: needs either the file of a suite or --template")
    if template:
        print(TEMPLATE_FILE.read_text(), end="")
        return
    checked = {path: suite_and_mistakes(read_document(path), path.stem) for path in files or ()}
    if as_json:
        print_json([_check_as_data(path, suite, mistakes) for path, (suite, mistakes) in checked.items()])
    for path, (suite, mistakes) in {} if as_json else checked.items():
        if mistakes:
            say("\n".join(_mistake_lines(path, mistakes)), stderr=True)
        if suite:
            say(_suite_summary(path, suite))
    if any(mistakes for _, mistakes in checked.values()):
        raise typer.Exit(EXIT_BAD_INPUT)


def _mistake_lines(path: Path, mistakes: "list[Mistake]") -> list[str]:
    """Return one line for each mistake in the order of the file. Rows with the same mistake share a line."""
    locations_by_mistake: dict[tuple[int, str, str], list[str]] = {}
    for mistake in sorted(mistakes):
        locations_by_mistake.setdefault((mistake.line, mistake.says, mistake.similar_name), []).append(mistake.where)
    lines = []
    for (line, says, similar), locations in locations_by_mistake.items():
        first, *others = [where for where in locations if where] or [""]
        more_places = f" and {number_with_noun(len(others), 'more place')}" if others else ""
        hint = f"; did you mean {similar}?" if similar else ""
        file = str(path).replace("\n", "\\n")
        lines.append(f"{file}:{line}: {first}{more_places}{': ' if first else ''}{says}{hint}")
    return lines


def _suite_summary(path: Path, suite: "Suite") -> str:
    from experiments.suites.sentences import statement_ids

    rows, statements = [row.id for row in suite.rows], statement_ids(suite)
    listed = ", ".join(statements) or "none; the report shows the rows and evaluates nothing"
    return "\n".join(
        (
            f"{path}: suite {suite.suite}, version {suite.version}: no mistakes",
            f"  cards: {', '.join(suite.all_cards)}",
            f"  {number_with_noun(len(rows), 'row')}: {', '.join(rows)}",
            f"  {number_with_noun(len(statements), 'statement')}: {listed}",
            f"  next: testbed run --suite-file {path} --size tiny",
        )
    )


def _check_as_data(path: Path, suite: "Suite | None", mistakes: "list[Mistake]") -> dict[str, object]:
    from experiments.suites.sentences import statement_ids

    return {
        "file": str(path),
        "suite": suite.suite if suite else None,
        "rows": [row.id for row in suite.rows] if suite else [],
        "statements": statement_ids(suite) if suite else [],
        "mistakes": [mistake._asdict() for mistake in sorted(mistakes)],
    }
