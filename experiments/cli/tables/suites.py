"""Suites and their rows as tables for a terminal, and as data."""

from collections.abc import Iterable
from typing import Any

from rich.console import Group
from rich.text import Text

from experiments.results.wording import OUTCOME_NAMES
from experiments.suites.settings import Lora, Quantization, Settings
from experiments.suites.suite import Suite, suite_named, suite_names
from experiments.system.tables import Column, Table


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
            "scales": {card: scale.note for scale in suite.scales for card in scale.cards},
            "rows": len(suite.rows),
            "claims": len(suite.claims),
        }
        for suite in suites
    ]


def suites_table() -> Table:
    """Return a table of all suites."""
    table = Table(
        "suite",
        Column("title", prose=True),
        *(Column(name, number=True) for name in ("rows", "claims")),
        Column("engine", optional=1),
        Column("cards", prose=True),
    )
    for suite in suites_as_data():
        cells = [suite[key] for key in ("suite", "title", "rows", "claims", "engine")]
        scaled = (f"{card} ({words})" for card, words in suite["scales"].items())
        table.add(*map(str, cells), ", ".join([*suite["cards"], *scaled]))
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
            "scaled": suite.twin_note(row.id, card),
            "expected": row.expect.outcome,
            "settings": suite.settings(row, card).model_dump(mode="json"),
        }
        for row in suite.rows_for(card)
    ]


def rows_table(name: str, card: str | None) -> Group:
    """Return a table of the rows of a suite on ``card``, with the settings that not all rows have.

    Below the table, a list explains these settings.
    """
    suite, card = _suite_and_card(name, card)
    columns = ("row", Column("title", prose=True), "model", "expected", Column("settings", prose=True))
    note = suite.note_on_scaled_rows([row.id for row in suite.rows_for(card)], card)
    table = Table(*columns, title=", ".join(filter(None, (suite.title, f"on {card}", note))))
    named: dict[str, None] = {}
    for row in suite.rows_for(card):
        settings = suite.settings(row, card)
        differing = _differing_settings(suite, settings)
        named |= dict.fromkeys(differing)
        words = ", ".join(f"{key} {_compact_setting(getattr(settings, key))}" for key in differing)
        table.add(row.id, row.title, settings.model, OUTCOME_NAMES.get(row.expect.outcome or "", ""), words)
    return Group(table, Text(), _settings_meanings(named))


def _settings_meanings(names: Iterable[str]) -> Table:
    table = Table("setting", Column("meaning", prose=True))
    for name in names:
        table.add(name, Settings.model_fields[name].description or "")
    return table


def _suite_and_card(name: str, card: str | None) -> tuple[Suite, str]:
    suite = suite_named(name)
    return suite, card or suite.cards[0]


def _differing_settings(suite: Suite, settings: Settings) -> list[str]:
    """Return the names of the settings that differ from the suite's common settings and from the defaults."""
    plain = settings.model_dump(mode="json", exclude_defaults=True)
    hidden, common = ("model", "global_batch_size"), {"accumulate": 1, **suite.common}
    return [key for key, value in plain.items() if value != common.get(key) and key not in hidden]


def _compact_setting(value: Any) -> str:
    if isinstance(value, Lora):
        targets = value.targets if isinstance(value.targets, str) else ", ".join(value.targets)
        return f"rank {value.r} alpha {value.alpha} dropout {value.dropout:g} in {targets}"
    if isinstance(value, Quantization):
        return value.kind
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
