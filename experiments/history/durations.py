"""Estimate how long rows take, from stored results of the same rows."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from math import ceil
from pathlib import Path
from typing import NamedTuple

from experiments.errors import InputError
from experiments.results.run_folder import RUN_FILE, RunFolder
from experiments.results.schema import Result
from experiments.suites.choices import Length, Size
from experiments.system.files import CODE_FOLDER

EVIDENCE = CODE_FOLDER / "experiments" / "evidence"


class Expected(NamedTuple):
    """The total time of rows, in seconds: of the ``measured`` ones among ``rows`` rows, run one after another."""

    seconds: float
    measured: int
    rows: int
    devices: tuple[str, ...]


def in_words(times: Mapping[str, Expected]) -> str:
    """Return the times of suites, in minutes, and the devices on which they were measured, as one line."""
    devices = sorted({device for time in times.values() for device in time.devices})
    if not devices:
        return "time: none of these rows was measured at this size and length"
    each = ", ".join(f"{suite} {_minutes(time)}" for suite, time in times.items())
    return f"time, one row after another, as measured on {', '.join(devices)}: {each}"


def _minutes(time: Expected) -> str:
    missing = time.rows - time.measured
    if not time.measured:
        return "never measured"
    return f"{ceil(time.seconds / 60)} min" + (f" ({missing} of {time.rows} rows never measured)" if missing else "")


def expected(suite: str, rows: Sequence[str], size: Size, length: Length, results: Path) -> Expected:
    """Return how long ``rows`` take, start included: for each row, its longest time in stored runs or ``results``.

    Only results of the same size and length count. A run that cannot be read is left out.
    """
    longest: dict[str, Result] = {}
    for folder in _runs((EVIDENCE, results)):
        for row, result in _results(folder, (suite, size, length)).items():
            if row in rows and (row not in longest or longest[row].elapsed_s < result.elapsed_s):
                longest[row] = result
    models = ", tiny models" if size == "tiny" else ""
    devices = tuple(sorted({result.device.name + models for result in longest.values()}))
    return Expected(sum(result.elapsed_s for result in longest.values()), len(longest), len(rows), devices)


def _results(folder: RunFolder, wanted: tuple[str, Size, Length]) -> dict[str, Result]:
    """Return the results of a run with this suite, size and length; {} for another run and an unreadable one."""
    with suppress(InputError):
        run = folder.read_run()
        if (run.suite, run.size, run.length) == wanted:
            return folder.results()
    return {}


def _runs(folders: Iterable[Path]) -> list[RunFolder]:
    return [RunFolder(path.parent) for folder in folders for path in sorted(folder.glob(f"*/{RUN_FILE}"))]
