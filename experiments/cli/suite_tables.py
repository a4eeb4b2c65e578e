"""Suites and their rows as tables for a terminal, and as data."""

from typing import Any

from rich.table import Column, Table

from experiments.results.wording import OUTCOMES
from experiments.suites.settings import Settings
from experiments.suites.suite import Suite, suite_named, suite_names


def suites_as_data() -> list[dict[str, Any]]:
    """Return name, title, cards, and number of rows and claims of every suite."""
    suites = (suite_named(name) for name in suite_names())
    return [
        {
            "suite": suite.suite,
            "version": suite.version,
            "title": suite.title,
            "engine": suite.common.get("engine"),
            "cards": list(suite.cards),
            "rows": len(suite.rows),
            "claims": len(suite.claims),
        }
        for suite in suites
    ]


def suites_table() -> Table:
    """Return a table of all suites."""
    table = Table(Column("suite", no_wrap=True), "title", "rows", "claims", "engine", "cards")
    for suite in suites_as_data():
        cells = [suite[key] for key in ("suite", "title", "rows", "claims", "engine")]
        table.add_row(*map(str, cells), ", ".join(suite["cards"]))
    return table


def rows_as_data(name: str, card: str | None) -> list[dict[str, Any]]:
    """Return the rows of a suite on ``card`` (None: the suite's first card) with their settings.

    Raises InputError for unknown names.
    """
    suite, card = _suite_and_card(name, card)
    return [
        {
            "row": row.id,
            "title": row.title,
            "card": card,
            "expected": row.expect.outcome,
            "settings": suite.settings(row, card).model_dump(mode="json"),
        }
        for row in suite.rows_for(card)
    ]


def rows_table(name: str, card: str | None) -> Table:
    """Return a table of the rows of a suite on ``card``: the settings that differ from the suite's common ones."""
    suite, card = _suite_and_card(name, card)
    columns = (Column("row", no_wrap=True), Column("model", no_wrap=True), "expected", "settings")
    table = Table(*columns, title=f"{suite.title}, on {card}", title_justify="left")
    for row in suite.rows_for(card):
        settings = suite.settings(row, card)
        table.add_row(row.id, settings.model, OUTCOMES.get(row.expect.outcome or "", ""), _in_words(suite, settings))
    return table


def _suite_and_card(name: str, card: str | None) -> tuple[Suite, str]:
    suite = suite_named(name)
    return suite, card or suite.cards[0]


def _in_words(suite: Suite, settings: Settings) -> str:
    """Return the settings that differ from the suite's common ones and from defaults."""
    plain = settings.model_dump(mode="json", exclude_defaults=True)
    own = {key: value for key, value in plain.items() if value != suite.common.get(key) and key != "model"}
    return ", ".join(f"{key} {_compact(value)}" for key, value in own.items() if key != "global_batch_size")


def _compact(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(str(_compact(part)) for part in value.values())
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)
