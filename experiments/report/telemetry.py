"""Read telemetry.csv as columns of numbers."""

from pathlib import Path

from experiments.results.gpu_load import read_samples
from experiments.results.schema import Record

MAX_SAMPLES = 400


class Telemetry(Record):
    """Samples over time. Each column is as long as t_s (seconds); None if a sample lacks the value.

    every_nth: 1 if the columns have all samples of telemetry.csv; n if they have every n-th sample only.
    """

    every_nth: int
    columns: dict[str, tuple[float | None, ...]]


def read_telemetry(path: Path | None) -> Telemetry | None:
    """Return the samples in ``path``, thinned to ``MAX_SAMPLES``, without empty columns; None if there are none."""
    samples = read_samples(path) if path else []
    every = max(1, -(-len(samples) // MAX_SAMPLES))
    names = [name for name in dict.fromkeys(name for sample in samples for name in sample) if name != "phase"]
    if not names:
        return None
    columns = {name: tuple(_number(sample.get(name)) for sample in samples[::every]) for name in names}
    return Telemetry(every_nth=every, columns=columns)


def _number(value: float | str | None) -> float | None:
    return value if isinstance(value, float) else None
