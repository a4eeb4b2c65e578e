"""Suites and their rows as tables for a terminal, and as data."""

from typing import Any

from rich.table import Column, Table

from experiments.results.wording import ENDINGS
from experiments.suites.settings import Settings
from experiments.suites.suite import Suite, suite_named, suite_names


def suites_as_data() -> list[dict[str, Any]]:
    """Every suite: its name, title, cards, number of rows and of claims."""
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
    """Every suite in one line."""
    table = Table(Column("suite", no_wrap=True), "title", "rows", "claims", "engine", "cards")
    for suite in suites_as_data():
        cells = [suite[key] for key in ("suite", "title", "rows", "claims", "engine")]
        table.add_row(*map(str, cells), ", ".join(suite["cards"]))
    return table


def rows_as_data(name: str, card: str | None) -> list[dict[str, Any]]:
    """The rows of a suite on ``card`` (None: its first) with all that they set; InputError for unknown names."""
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
    """The rows of a suite on ``card`` in one line each: what sets them apart from the suite's common settings."""
    suite, card = _suite_and_card(name, card)
    columns = (Column("row", no_wrap=True), Column("model", no_wrap=True), "expected", "settings")
    table = Table(*columns, title=f"{suite.title}, on {card}", title_justify="left")
    for row in suite.rows_for(card):
        settings = suite.settings(row, card)
        table.add_row(row.id, settings.model, ENDINGS.get(row.expect.outcome or "", ""), _in_words(suite, settings))
    return table


def _suite_and_card(name: str, card: str | None) -> tuple[Suite, str]:
    suite = suite_named(name)
    return suite, card or suite.cards[0]


def _in_words(suite: Suite, settings: Settings) -> str:
    """The settings that are neither the suite's common ones nor unset."""
    plain = settings.model_dump(mode="json", exclude_defaults=True)
    own = {key: value for key, value in plain.items() if value != suite.common.get(key) and key != "model"}
    return ", ".join(f"{key} {_compact(value)}" for key, value in own.items() if key != "global_batch_size")


def _compact(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(str(_compact(part)) for part in value.values())
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)
