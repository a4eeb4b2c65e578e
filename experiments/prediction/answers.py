"""The columns of every table that says what a training needs on a card, and whether it fits."""

from rich.text import Text

from experiments.system.tables import Column, Table

STYLES = {"fits": "green", "borderline": "yellow", "oom": "red"}
SIZES = ("peak", "needed", "usable", "margin")


def answers_table(*first: Column | str, title: str, note: str = "note") -> Table:
    """Return a table without rows: ``first``, sizes in GiB, outcome, note. Empty columns are hidden."""
    sizes = (Column(name, number=True) for name in SIZES)
    return Table(*first, *sizes, "outcome", Column(note, prose=True), title=title)


def answer(outcome: str, note: str = "", *, margin: float | None = None, **sizes: float) -> tuple[str | Text, ...]:
    """Return the cells after the first columns of such a table; sizes: peak, needed and usable in GiB, where known."""
    known = {name: gib(size) for name, size in sizes.items()}
    if margin is not None:
        known["margin"] = f"{margin:+.2f}"
    return *(known.get(name, "") for name in SIZES), Text(outcome, STYLES.get(outcome, "")), note


def gib(value: float) -> str:
    """Format a size in GiB."""
    return f"{value:.2f}"
