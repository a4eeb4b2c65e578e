"""telemetry.csv as columns of numbers."""

import csv
from math import isfinite
from pathlib import Path

from experiments.results.schema import Record

POINTS = 400


class Telemetry(Record):
    """Samples over time. Each column is as long as t_s (seconds); None if a sample lacks the value.

    every: one of so many samples is in the report; telemetry.csv has all.
    """

    every: int
    columns: dict[str, tuple[float | None, ...]]


def read_telemetry(path: Path) -> Telemetry | None:
    """Return the samples in ``path``, thinned to ``POINTS``, without empty columns; None if there are none."""
    if not path.is_file():
        return None
    with path.open(newline="", errors="replace") as file:
        reader = csv.DictReader(file)
        names = reader.fieldnames or ()
        samples = [{name: _value(row[name]) for name in names} for row in reader]
    samples = [sample for sample in samples if sample.get("t_s") is not None]
    every = max(1, -(-len(samples) // POINTS))
    kept = [name for name in names if any(sample[name] is not None for sample in samples)]
    if not kept:
        return None
    return Telemetry(every=every, columns={name: tuple(sample[name] for sample in samples[::every]) for name in kept})


def _value(text: object) -> float | None:
    try:
        value = float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return value if isfinite(value) else None
