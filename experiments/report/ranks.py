"""Report on rows with several ranks: the measurements of each rank, and the speedup over one device."""

from collections.abc import Mapping

from pydantic import Field

from experiments.results.quantities import QUANTITIES, value_of
from experiments.results.run_folder import Run
from experiments.results.schema import Measured, Record, Result, Speed
from experiments.results.wording import OUTCOME_NAMES
from experiments.suites.settings import Settings
from experiments.suites.suite import Quantity, Row, Suite

MATCHING_SETTINGS = ("engine", "model", "task", "dataset", "precision", "lora", "quantization")
"""Settings that must be the same in a row and in its base row, the most similar row on one device."""


class RankReport(Record):
    """One rank of a row. Memory in GiB; samples_per_s: speed of all ranks together, as this rank measured it."""

    measured: Measured = Field(description="the rank's measurements without snapshots")
    ended: str = Field(description="outcome of the rank as text")
    failed_first: bool = Field(description="this rank's failure is the failure of the row")
    quantities: dict[Quantity, float | None]


class StatedTimes(Record):
    """Training times that the lab states for a row with several ranks, and for its base row on one device.

    base_samples, row_samples: number of samples that the base row and the row train on.
    """

    base_s: float
    base_samples: int
    row_s: float
    row_samples: int
    speedup: float = Field(description="samples per second of the row, divided by those of the base row")


class Scaling(Record):
    """The speedup of a row with several ranks over ``base``, the most similar row on one device.

    speedup: samples per second relative to base. efficiency: speedup divided by the number of ranks. speed: None
    if the row does not fit.
    """

    row: str
    ranks: int
    stated_ranks: int
    base: str | None
    speed: Speed | None
    base_samples_per_s: float | None
    speedup: float | None
    efficiency: float | None
    stated: StatedTimes | None


def rank_reports(result: Result) -> tuple[RankReport, ...]:
    """Return the ranks of a row, sorted by number; empty for a row with one process."""
    failed = result.failure.rank if result.failure else None
    return tuple(
        RankReport(
            measured=measured.model_copy(update={"memory": measured.memory.model_copy(update={"snapshots": ()})}),
            ended=OUTCOME_NAMES[measured.outcome],
            failed_first=measured.rank == failed,
            quantities={name: read(measured) for name, read in QUANTITIES.items()},
        )
        for measured in sorted(result.ranks, key=lambda measured: measured.rank)
    )


def scalings(suite: Suite, run: Run, results: Mapping[str, Result]) -> tuple[Scaling, ...]:
    """Return the speedup of each of the run's rows that has several ranks and a result."""
    rows_with_ranks = [row for row in run.rows if row in results and stated_settings(suite, run, row).ranks > 1]
    return tuple(_scaling(suite, run, suite.row(row), results) for row in rows_with_ranks)


def stated_settings(suite: Suite, run: Run, row: str) -> Settings:
    """Return the row's settings as the suite states them, not scaled down to fewer GPUs."""
    return suite.settings(suite.row(row), run.card)


def base_row(suite: Suite, run: Run, row: Row) -> Row | None:
    """Return the most similar row on one device: the row that shares the most settings with ``row``.

    Both rows have the same values of MATCHING_SETTINGS. Returns None if there is no such row.
    """
    row_settings = stated_settings(suite, run, row.id).model_dump()

    def count_shared_settings(other: Row) -> int:
        settings = stated_settings(suite, run, other.id).model_dump()
        if settings["devices"] * settings["nodes"] > 1 or any(
            settings[name] != row_settings[name] for name in MATCHING_SETTINGS
        ):
            return 0
        return sum(settings[name] == row_settings[name] for name in row_settings)

    best = max(suite.rows_for(run.card), key=count_shared_settings)
    return best if count_shared_settings(best) else None


def _scaling(suite: Suite, run: Run, row: Row, results: Mapping[str, Result]) -> Scaling:
    result, base = results[row.id], base_row(suite, run, row)
    base_result = results.get(base.id) if base else None
    speed = result.speed if result.outcome == "fits" else None
    base_speed = value_of("samples_per_s", base_result) if base_result else None
    speedup = speed.samples_per_s / base_speed if speed and base_speed else None
    ranks = result.spec.settings.ranks
    return Scaling(
        row=row.id,
        ranks=ranks,
        stated_ranks=stated_settings(suite, run, row.id).ranks,
        base=base.id if base else None,
        speed=speed,
        base_samples_per_s=base_speed,
        speedup=speedup,
        efficiency=speedup / ranks if speedup else None,
        stated=_stated_times(base, base_result, row, result) if base and base_result else None,
    )


def _stated_times(base: Row, base_result: Result, row: Row, result: Result) -> StatedTimes | None:
    base_s, row_s = _stated_train_s(base), _stated_train_s(row)
    base_samples, row_samples = _sample_count(base_result), _sample_count(result)
    if not (base_s and row_s and base_samples and row_samples):
        return None
    speedup = row_samples / row_s / (base_samples / base_s)
    return StatedTimes(base_s=base_s, base_samples=base_samples, row_s=row_s, row_samples=row_samples, speedup=speedup)


def _stated_train_s(row: Row) -> float | None:
    """Return the middle of the training times that the lab states for the row, s; None if the lab states no time."""
    values = [value for value in row.expect.reference_values if value.quantity == "train_s"]
    return (values[0].low + values[0].high) / 2 if values else None


def _sample_count(result: Result) -> int:
    """Return the number of samples of the full-length training; 0 if the row does not record it."""
    settings = result.spec.settings
    counts = result.step_counts
    return counts.planned_micro_steps * settings.batch_size * settings.world_size if counts else 0
