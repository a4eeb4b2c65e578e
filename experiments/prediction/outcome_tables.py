"""Columns of all tables of predicted outcomes: memory that a training needs and a card has, and whether it fits."""

from rich.text import Text

from experiments.system.tables import Column, Table

STYLES = {"fits": "green", "borderline": "yellow", "oom": "red"}
SIZES = ("peak", "needed", "usable", "margin")


def outcomes_table(*leading_columns: Column | str, title: str, note: str = "note") -> Table:
    """Return a table without rows: ``leading_columns``, sizes in GiB, outcome, note. Empty columns are hidden."""
    sizes = (Column(name, number=True) for name in SIZES)
    return Table(*leading_columns, *sizes, "outcome", Column(note, prose=True), title=title)


def outcome_cells(
    outcome: str, note: str = "", *, margin: float | None = None, **sizes: float
) -> tuple[str | Text, ...]:
    """Return the cells after the leading columns of a table of outcomes.

    margin: free memory in GiB, negative if memory is missing; None: unknown. sizes: peak, needed and usable, as far
    as they are known, in GiB.
    """
    known = {name: format_gib(size) for name, size in sizes.items()}
    if margin is not None:
        known["margin"] = f"{margin:+.2f}"
    return *(known.get(name, "") for name in SIZES), Text(outcome, STYLES.get(outcome, "")), note


def format_gib(value: float) -> str:
    """Format a size in GiB."""
    return f"{value:.2f}"
