"""A change between runs, and the facts that differ."""

from collections.abc import Mapping
from typing import NamedTuple

from experiments.results.changes.facts import Figure
from experiments.results.wording import format_number, quantity_label, quantity_unit

Key = tuple[str, str]
"""A row and the name of its figure or fact."""
Figures = Mapping[Key, Figure]
"""The figures of a run."""


class Changed(NamedTuple):
    """One change between runs. row: empty for a verdict. ratio: new value of a figure divided by the old one."""

    row: str
    what: str
    before: str
    now: str
    ratio: float | None = None

    @property
    def sentence(self) -> str:
        """Return the change as one line: 'xxl-sgd: peak memory 61.9 GiB → 63.1 GiB (+2.0 %)'."""
        place = f"{self.row}: " if self.row else ""
        percent = f" ({100 * (self.ratio - 1):+.2g} %)" if self.ratio else ""
        return f"{place}{self.what} {self.before or 'none'} → {self.now or 'none'}{percent}"


def changed_figure(key: Key, before: float, now: float) -> Changed:
    """Return the change of a figure from ``before`` to ``now``, in its own unit."""
    row, quantity = key
    then, words = (f"{format_number(value)} {quantity_unit(quantity)}".strip() for value in (before, now))
    return Changed(row, quantity_label(quantity), then, words, now / before if before else None)


def differing(before: Mapping[Key, str], now: Mapping[Key, str]) -> list[Changed]:
    """Return the facts that differ, for rows that both runs have."""
    rows = {row for row, _ in before} & {row for row, _ in now}
    keys = [key for key in dict.fromkeys([*before, *now]) if key[0] in rows]
    return [
        Changed(*key, before.get(key, ""), now.get(key, "")) for key in keys if before.get(key, "") != now.get(key, "")
    ]
