"""Find what changed in a run since the run before: facts, verdicts, and figures that changed by more than their noise.

A figure has changed where ruptures finds the start of a new segment. The search is KernelCPD with the linear kernel:
its cost is the squared distance to the segment's mean, in units of the noise. Its penalty is 2 log n, the Bayesian
information criterion for a change of the mean (Yao 1988). n is the number of all tested values, so that long histories
with many figures raise no more false alarms than short ones.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import inf, log, sqrt
from statistics import median
from typing import NamedTuple

from experiments.history.series import Key, RecordedRun, Series
from experiments.results.quantities import ABSOLUTE_TIME_QUANTITIES
from experiments.results.wording import format_number, quantity_label, quantity_unit
from experiments.system.packages import require

NORMAL_MAD = 0.6745
"""Median absolute deviation of a normal distribution, in standard deviations."""
ALLOCATOR_BLOCK_GIB = 2 / 1024
"""PyTorch's allocator reserves memory in blocks of 2 MiB."""
BF16_ROUNDING = 2**-8
"""Relative rounding of a bfloat16, in which losses are computed."""
FLOAT_ROUNDING = 2**-24
"""Relative rounding of a 32-bit number."""
MIN_DIFFERENCES = 3
"""Number of differences from which their median estimates the noise."""


class Changed(NamedTuple):
    """One changed figure, fact or verdict. row: empty for a verdict. ratio: of a figure, new value over old value."""

    row: str
    what: str
    before: str
    now: str
    ratio: float | None = None

    @property
    def sentence(self) -> str:
        """Return the change in one line: 'xxl-sgd: peak memory 61.9 GiB → 63.1 GiB (+2.0 %)'."""
        place = f"{self.row}: " if self.row else ""
        percent = f" ({100 * (self.ratio - 1):+.2g} %)" if self.ratio else ""
        return f"{place}{self.what} {self.before or 'none'} → {self.now or 'none'}{percent}"


class RunChanges(NamedTuple):
    """The changes of one run since the run before, and possible causes: versions, devices, code and data that differ.

    borderline: statements whose status flipped although no value of their rows changed by more than its noise.
    """

    run: RecordedRun
    before: RecordedRun
    changed: list[Changed]
    borderline: list[Changed]
    causes: list[Changed]


def run_changes(series: Series) -> list[RunChanges]:
    """Return the runs in which something changed, oldest first, with what else differs from the run before each.

    A run with nothing but borderline statements is not among them.
    """
    starts = _change_points(series)
    found = []
    for place, (before, run) in enumerate(pairwise(series.runs), 1):
        moved = [_figure_change(key, series, place) for key, places in starts.items() if place in places]
        changed = [*_changed_facts(before.facts, run.facts), *moved]
        flipped, borderline = _flipped_statements(before, run, {one.row for one in changed})
        if flipped or changed:
            found.append(RunChanges(run, before, [*flipped, *changed], borderline, _causes(before, run)))
    return found


def _flipped_statements(before: RecordedRun, run: RecordedRun, rows: set[str]) -> tuple[list[Changed], list[Changed]]:
    """Return two lists of flipped statements: those with new bounds or about the changed ``rows``, and all others."""
    flipped: list[Changed] = []
    borderline: list[Changed] = []
    for id_, now in run.verdicts.items():
        then = before.verdicts.get(id_)
        if then and then.status != now.status:
            real = then.expected != now.expected or rows & set(now.rows)
            (flipped if real else borderline).append(Changed("", now.says, then.status, now.status))
    return flipped, borderline


def _changed_facts(before: dict[Key, str], now: dict[Key, str]) -> list[Changed]:
    """Return the facts that differ, for rows that both runs have."""
    rows = {row for row, _ in before} & {row for row, _ in now}
    keys = [key for key in dict.fromkeys([*before, *now]) if key[0] in rows]
    return [
        Changed(*key, before.get(key, ""), now.get(key, "")) for key in keys if before.get(key, "") != now.get(key, "")
    ]


def _causes(before: RecordedRun, run: RecordedRun) -> list[Changed]:
    """Return the versions, devices and other causes that differ, each once for all rows."""
    differing = _changed_facts(before.causes, run.causes)
    return list(dict.fromkeys(one._replace(row="") for one in differing))


def _figure_change(key: Key, series: Series, place: int) -> Changed:
    row, quantity = key
    earlier = [value for value in series.values(key)[:place] if value is not None]
    before, now = earlier[-1], series.runs[place].figures[key].value
    then, words = (f"{format_number(value)} {quantity_unit(quantity)}".strip() for value in (before, now))
    return Changed(row, quantity_label(quantity), then, words, now / before if before else None)


def _change_points(series: Series) -> dict[Key, set[int]]:
    """Return for each figure the indices of the runs at which its value changes."""
    keys = series.keys
    shared = _shared_noise(series, keys)
    tested = sum(len(run.figures) for run in series.runs)
    found = {}
    for key in keys:
        places = [place for place, run in enumerate(series.runs) if key in run.figures]
        values = [series.runs[place].figures[key].value for place in places]
        noise = _noise_of_figure(key, series, values, shared[key[1]])
        found[key] = {places[start] for start in segment_starts(values, noise, tested)}
    return found


def segment_starts(values: Sequence[float], noise: float, tested: int) -> list[int]:
    """Return the indices at which new segments of ``values`` start, without the first.

    noise: standard deviation of one value. tested: number of values of all figures that are searched for changes.
    """
    if len(set(values)) < 2:
        return []
    require("ruptures")
    import numpy
    import ruptures

    signal = numpy.array([value / noise for value in values]).reshape(-1, 1)
    search = ruptures.KernelCPD(kernel="linear", min_size=1).fit(signal)
    return [int(end) for end in search.predict(pen=2 * log(tested))[:-1]]


def _noise_of_figure(key: Key, series: Series, values: Sequence[float], shared: float) -> float:
    """Return the standard deviation of a figure: that of its runs, of their steps, or its rounding.

    It is infinite for a time whose deviation between runs is not known yet. The newest value is left out, because it
    may be the change.
    """
    size = abs(median(values))
    between = max(_standard_deviation([later - earlier for earlier, later in pairwise(values[:-1])]), shared * size)
    if key[1] in ABSOLUTE_TIME_QUANTITIES and not between:
        return inf
    within = median(run.figures[key].spread or 0.0 for run in series.runs if key in run.figures)
    return max(between, within, _rounding(key[1], size))


def _shared_noise(series: Series, keys: Sequence[Key]) -> dict[str, float]:
    """Return the relative standard deviation of each quantity between runs, over all rows; 0 if it is not known."""
    steps: dict[str, list[float]] = {}
    for key in keys:
        values = [value for value in series.values(key)[:-1] if value]
        steps.setdefault(key[1], []).extend(later / earlier - 1 for earlier, later in pairwise(values))
    return {name: _standard_deviation(several) for name, several in steps.items()}


def _standard_deviation(steps: Sequence[float]) -> float:
    """Estimate the standard deviation of one value from the differences of consecutive values; 0 for less than three.

    The estimate uses the median difference, so that a single change does not widen it.
    """
    if len(steps) < MIN_DIFFERENCES:
        return 0.0
    return median(map(abs, steps)) / NORMAL_MAD / sqrt(2)


def _rounding(quantity: str, value: float) -> float:
    if quantity.endswith("_gib"):
        return ALLOCATOR_BLOCK_GIB
    return (value or 1.0) * (BF16_ROUNDING if quantity.endswith("_loss") else FLOAT_ROUNDING)
