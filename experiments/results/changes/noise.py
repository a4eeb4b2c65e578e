"""Find measured values that changed beyond their noise in consecutive runs.

The library ruptures splits the history of a value into segments. A value changed where a new segment starts. The method
is KernelCPD with the linear kernel: its cost is the squared distance to the segment's mean, in units of the noise. The
penalty for a segment is that of the Bayesian information criterion for a change of the mean, 2 log n (Yao 1988). Here,
n is the number of all tested values, so that long histories with many quantities cause no more false alarms than short
ones.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import inf, log, sqrt
from statistics import median

from experiments.results.changes.changed import MeasuredValues, ValueKey
from experiments.results.quantities import ABSOLUTE_TIME_QUANTITIES
from experiments.system.packages import require_packages

MAD_OF_A_NORMAL = 0.6745
"""Median absolute deviation of a normal distribution, in standard deviations."""
ALLOCATOR_BLOCK_GIB = 2 / 1024
"""PyTorch's allocator reserves memory in blocks of 2 MiB."""
BF16_ROUNDING = 2**-8
"""Relative rounding error of a bfloat16, in which losses are computed."""
FLOAT_ROUNDING = 2**-24
"""Relative rounding error of a 32-bit number."""
MIN_DIFFERENCES = 3
"""Minimum number of differences for a meaningful median."""


def change_points(
    runs: Sequence[MeasuredValues],
    recorded: Sequence[MeasuredValues] = (),
    step_deviations: Mapping[ValueKey, float] | None = None,
) -> dict[ValueKey, set[int]]:
    """Return the indices in ``runs`` (the oldest run first) at which each value changes.

    recorded: runs on which the noise between runs is measured. Without ``recorded``, the noise is measured on ``runs``,
    but without the newest run, which may contain the change. If these are too few runs for a quantity of time, its
    noise is computed from the rows of the two newest runs, which change by different shares. If these are too few rows,
    the noise is the deviation between steps.

    step_deviations: standard deviation between steps by row and quantity, in the unit of the quantity.
    """
    keys = list(dict.fromkeys(key for run in runs for key in run))
    noise_runs = recorded or runs[:-1]
    shared = _relative_deviations_between_rows(runs) | _relative_deviations_between_runs(noise_runs)
    tested_count = sum(len(run) for run in runs)
    indices_by_key = {}
    for key in keys:
        indices = [index for index, run in enumerate(runs) if key in run]
        values = [runs[index][key].value for index in indices]
        spread = median(runs[index][key].spread or 0.0 for index in indices)
        between_runs = max(_deviation_between_runs(key, noise_runs), shared.get(key[1], 0.0) * abs(median(values)))
        if key[1] in ABSOLUTE_TIME_QUANTITIES and not between_runs and key[1] not in shared:
            between_runs = (step_deviations or {}).get(key, inf)
        noise = max(between_runs, spread, _rounding(key[1], abs(median(values))))
        indices_by_key[key] = {indices[start] for start in segment_starts(values, noise, tested_count)}
    return indices_by_key


def segment_starts(values: Sequence[float], noise: float, tested_count: int) -> list[int]:
    """Return the indices at which new segments of ``values`` start, without the first segment.

    noise: standard deviation of one value.
    tested_count: number of values, over all quantities, that are searched for changes.
    """
    if len(set(values)) < 2:
        return []
    require_packages("ruptures")
    import numpy
    import ruptures

    signal = numpy.array([value / noise for value in values]).reshape(-1, 1)
    search = ruptures.KernelCPD(kernel="linear", min_size=1).fit(signal)
    return [int(end) for end in search.predict(pen=2 * log(tested_count))[:-1]]


def _deviation_between_runs(key: ValueKey, runs: Sequence[MeasuredValues]) -> float:
    """Return the standard deviation of a value between runs; 0 if it is not known."""
    values = [run[key].value for run in runs if key in run]
    return _deviation([later - earlier for earlier, later in pairwise(values)])


def _relative_deviations_between_runs(runs: Sequence[MeasuredValues]) -> dict[str, float]:
    """Return the relative standard deviation between runs by quantity, computed over all rows.

    Quantities with fewer than MIN_DIFFERENCES differences between consecutive runs are left out.
    """
    relative_changes: dict[str, list[float]] = {}
    for key in dict.fromkeys(key for run in runs for key in run):
        values = [run[key].value for run in runs if key in run and run[key].value]
        relative_changes.setdefault(key[1], []).extend(later / earlier - 1 for earlier, later in pairwise(values))
    return {
        quantity: _deviation(changes)
        for quantity, changes in relative_changes.items()
        if len(changes) >= MIN_DIFFERENCES
    }


def _relative_deviations_between_rows(runs: Sequence[MeasuredValues]) -> dict[str, float]:
    """Return how much the relative change between the two newest runs varies from row to row, by quantity of time.

    The value is a standard deviation. A change that all rows have in common does not increase it. Quantities that fewer
    than MIN_DIFFERENCES rows have are left out.
    """
    ratios: dict[str, list[float]] = {}
    for before, now in [*pairwise(runs)][-1:]:
        for key in before.keys() & now.keys():
            if key[1] in ABSOLUTE_TIME_QUANTITIES:
                ratios.setdefault(key[1], []).append(now[key].value / before[key].value)
    return {
        name: _deviation([ratio - median(row_ratios) for ratio in row_ratios])
        for name, row_ratios in ratios.items()
        if len(row_ratios) >= MIN_DIFFERENCES
    }


def _deviation(differences: Sequence[float]) -> float:
    """Estimate the standard deviation of a value from the differences between consecutive values.

    Uses the median of the differences, which a single large change does not affect. Returns 0 for fewer than three
    differences.
    """
    if len(differences) < MIN_DIFFERENCES:
        return 0.0
    return median(map(abs, differences)) / MAD_OF_A_NORMAL / sqrt(2)


def _rounding(quantity: str, value: float) -> float:
    if quantity.endswith("_gib"):
        return ALLOCATOR_BLOCK_GIB
    return (value or 1.0) * (BF16_ROUNDING if quantity.endswith("_loss") else FLOAT_ROUNDING)
