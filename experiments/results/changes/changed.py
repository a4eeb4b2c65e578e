"""A change of a fact, a measured value or a verdict between runs, and the facts that differ between two runs."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, get_args

from experiments.results.changes.facts import MeasuredValue
from experiments.results.verdicts import Status
from experiments.results.wording import COMMIT_DIGITS, OUTCOME_NAMES, format_number, quantity_label, quantity_unit

STATUSES = get_args(Status)
MAX_NAMED_ROWS = 3
"""Maximum number of rows with the same change that are named one by one."""
ValueKey = tuple[str, str]
"""The id of a row, and the name of one of its quantities or facts."""
MeasuredValues = Mapping[ValueKey, MeasuredValue]
"""The measured values of a run."""


class RunChange(NamedTuple):
    """One change between runs. row: empty for a verdict. what: a quantity, a fact or a statement.

    before, now: both values as text, empty if missing. ratio: for a measured value, the new value divided by the old
    value.
    """

    row: str
    what: str
    before: str
    now: str
    ratio: float | None = None

    @property
    def values_in_words(self) -> tuple[str, str]:
        """Return both values; an outcome by its name, such as 'out of GPU memory', a commit by its first digits."""
        before, now = (OUTCOME_NAMES.get(value, value) for value in (self.before, self.now))
        return (before[:COMMIT_DIGITS], now[:COMMIT_DIGITS]) if self.what == "commit" else (before, now)

    @property
    def sentence(self) -> str:
        """Return the change as one line: 'xxl-sgd: peak memory 61.9 GiB → 63.1 GiB (+2.0 %)'."""
        place = f"{self.row}: " if self.row else ""
        before, now = self.values_in_words
        percent = f" ({100 * (self.ratio - 1):+.2g} %)" if self.ratio else ""
        what = f"{self.what.removesuffix('.')}:" if self.now in STATUSES and not self.row else self.what
        return f"{place}{what} {before or 'none'} → {now or 'none'}{percent}"


def change_sentences(changed: Iterable[RunChange]) -> list[str]:
    """Return one line for each change. More than MAX_NAMED_ROWS rows with the same change share one line."""
    alike: dict[tuple[str, str, str, bool], list[RunChange]] = {}
    for change in changed:
        alike.setdefault((change.what, change.before, change.now, bool(change.row)), []).append(change)
    sentences: list[str] = []
    for (*_, has_row), group in alike.items():
        if has_row and len(group) > MAX_NAMED_ROWS:
            sentences.append(f"{len(group)} rows: {group[0]._replace(row='').sentence}")
        else:
            sentences += [change.sentence for change in group]
    return sentences


def value_change(key: ValueKey, before: float, now: float) -> RunChange:
    """Return the change of a value in its own unit. before and now: the value in the older and in the newer run."""
    row, quantity = key
    before_text, now_text = (f"{format_number(value)} {quantity_unit(quantity)}".strip() for value in (before, now))
    return RunChange(row, quantity_label(quantity), before_text, now_text, now / before if before else None)


def differing_facts(before: Mapping[ValueKey, str], now: Mapping[ValueKey, str]) -> list[RunChange]:
    """Return the facts that differ between two runs, for the rows that have facts in both runs."""
    rows = {row for row, _ in before} & {row for row, _ in now}
    keys = [key for key in dict.fromkeys([*before, *now]) if key[0] in rows]
    return [
        RunChange(*key, before.get(key, ""), now.get(key, ""))
        for key in keys
        if before.get(key, "") != now.get(key, "")
    ]
