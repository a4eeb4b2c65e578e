"""Read telemetry.csv as columns of numbers."""

from pathlib import Path

from experiments.results.gpu_load import read_samples
from experiments.results.schema import Record

MAX_SAMPLES = 400


class Telemetry(Record):
    """Samples over time, by column. The column t_s has the seconds. A value of None: the sample lacks this value.

    every_nth: 1 if the columns have all samples of telemetry.csv; n if they have every n-th sample only.
    """

    every_nth: int
    columns: dict[str, tuple[float | None, ...]]


def read_telemetry(path: Path | None) -> Telemetry | None:
    """Return every n-th sample in ``path``, at most MAX_SAMPLES, without empty columns; None without samples."""
    samples = read_samples(path) if path else []
    every_nth = max(1, -(-len(samples) // MAX_SAMPLES))
    names = [name for name in dict.fromkeys(name for sample in samples for name in sample) if name != "phase"]
    if not names:
        return None
    columns = {name: tuple(_number(sample.get(name)) for sample in samples[::every_nth]) for name in names}
    return Telemetry(every_nth=every_nth, columns=columns)


def _number(value: float | str | None) -> float | None:
    return value if isinstance(value, float) else None
