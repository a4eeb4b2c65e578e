"""Read the current state of a run from its folder, whether or not the command that started the run still runs.

While rows run on other machines, the command that started them copies their progress, telemetry and logs into the
folder. Therefore, only the folder has to be read.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from experiments.prediction.as_result import describe_outcome, evaluate_run
from experiments.results.gpu_load import read_samples
from experiments.results.run_folder import PREDICTIONS_FILE, Run, RunFolder, row_path
from experiments.results.schema import (
    LOG_FILE,
    RESULT_FILE,
    SPEC_FILE,
    TELEMETRY_FILE,
    Progress,
    Result,
    read_progress,
)
from experiments.results.verdicts import Verdict
from experiments.results.wording import outcome_in_words
from experiments.system.lock import is_locked
from experiments.system.logs import end_of_log

LOAD_COLUMNS = {
    "GPU utilization": ("gpu_util_percent", "%"),
    "GPU memory": ("gpu_memory_gib", "GiB"),
    "CPU utilization": ("host_cpu_percent", "%"),
    "memory of the row's processes": ("process_memory_gib", "GiB"),
}
"""Columns of telemetry.csv that the view shows as load: name -> column and unit."""


@dataclass(frozen=True)
class Curve:
    """Values of one quantity over time, the newest last."""

    name: str
    unit: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class RowStatus:
    """A row at this moment.

    state: 'waiting', 'starting', a phase of the training, or the outcome. predicted: the predicted outcome at full
    size. elapsed_s: time since the row started, or, after its end, the time that it took; None before its start.
    devices: number of devices that the row uses.
    """

    row: str
    title: str
    state: str
    predicted: str
    progress: Progress | None = None
    result: Result | None = None
    elapsed_s: float | None = None
    devices: int = 1

    @property
    def is_running(self) -> bool:
        """Return whether the row has started and has no result."""
        return self.elapsed_s is not None and self.result is None


@dataclass(frozen=True)
class RunStatus:
    """A run at this moment. active: whether the command that started it still runs."""

    run: Run
    rows: tuple[RowStatus, ...]
    verdicts: tuple[Verdict, ...]
    active: bool

    @property
    def rows_done(self) -> int:
        """Return the number of rows with a result."""
        return sum(row.result is not None for row in self.rows)

    @property
    def gpu_hours(self) -> float:
        """Return the GPU-hours of all rows (hours multiplied by GPUs); 0 without a GPU, and if rows share GPUs."""
        if self.run.share_gpus:
            return 0.0
        held_s = sum(row.devices * (row.elapsed_s or 0.0) for row in self.rows if _uses_gpu(row))
        return held_s / 3600


class RunWatcher:
    """Repeatedly reads the state of the run in ``path``.

    Raises InputError if there is no run, or if its suite is unknown.
    """

    def __init__(self, path: Path) -> None:
        RunFolder(path).read_run()  # an error names the path as it was given
        self.folder = RunFolder(path.resolve())
        self._suite = self.folder.suite()
        self._evaluated: _Evaluation | None = None

    def read(self) -> RunStatus:
        """Return the state of the run now. Raises InputError for files that cannot be read."""
        run = self.folder.read_run()
        evaluated = self._evaluate(run)
        rows = tuple(
            self._row_status(
                self.folder.path / row_path(run.suite, row),
                evaluated.results.get(row),
                evaluated.predicted.get(row, ""),
            )
            for row in run.rows
        )
        return RunStatus(run, rows, evaluated.verdicts, is_locked(self.folder.path))

    def load_over_time(self, row: str) -> tuple[Curve, ...]:
        """Return the row's GPU and host load over time; empty before the first sample of telemetry."""
        samples = read_samples(self.folder.row_folder_named(row) / TELEMETRY_FILE)
        return tuple(
            Curve(name, unit, values)
            for name, (column, unit) in LOAD_COLUMNS.items()
            if (values := tuple(float(sample[column]) for sample in samples if column in sample))
        )

    def end_of_row_log(self, row: str) -> Sequence[str]:
        """Return the last lines of the row's log, without control characters."""
        path = self.folder.row_folder_named(row) / LOG_FILE
        return end_of_log(path).splitlines() if path.is_file() else ()

    def _row_status(self, folder: Path, result: Result | None, predicted: str) -> RowStatus:
        row = folder.name
        title = self._suite.row(row).title
        if result:
            devices, state = result.device.count, outcome_in_words(result.outcome, result.spec.size)
            return RowStatus(row, title, state, predicted, None, result, result.elapsed_s, devices)
        started = _modification_time(folder / SPEC_FILE)
        if started is None:
            return RowStatus(row, title, "waiting", predicted)
        progress = read_progress(folder)
        devices = progress.device.count if progress and progress.device else 1
        state = progress.phase if progress else "starting"
        return RowStatus(row, title, state, predicted, progress, None, max(0.0, time.time() - started), devices)

    def _evaluate(self, run: Run) -> "_Evaluation":
        """Return results, predictions and verdicts. Reads their files again only if one of them has changed."""
        files = [self.folder.path / row_path(run.suite, row) / RESULT_FILE for row in run.rows]
        file_times = tuple(map(_modification_time, [*files, self.folder.path / PREDICTIONS_FILE]))
        if self._evaluated is None or self._evaluated.file_times != file_times:
            verdicts = evaluate_run(self._suite, self.folder).best.verdicts
            predicted = {one.spec.row: describe_outcome(one) for one in self.folder.predictions()}
            self._evaluated = _Evaluation(file_times, self.folder.results(), predicted, verdicts)
        return self._evaluated


class _Evaluation(NamedTuple):
    """Results, predicted outcomes by row and verdicts, and the times of the files that they were read from."""

    file_times: tuple[float | None, ...]
    results: dict[str, Result]
    predicted: dict[str, str]
    verdicts: tuple[Verdict, ...]


def _modification_time(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _uses_gpu(row: RowStatus) -> bool:
    source = row.result or row.progress
    return source is not None and source.device is not None and source.device.kind == "cuda"
