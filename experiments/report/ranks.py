"""Rows of several ranks: what each rank did, and how the row's speed grows over one device's."""

from collections.abc import Mapping

from pydantic import Field

from experiments.results.quantities import QUANTITIES, value_of
from experiments.results.run_folder import Run
from experiments.results.schema import Record, Result
from experiments.results.wording import ENDINGS
from experiments.suites.settings import Settings
from experiments.suites.suite import Row, Suite

SAME = ("engine", "model", "task", "dataset", "precision", "lora", "quantization")


class RankReport(Record):
    """One rank of a row. Memory in GiB; samples_per_s is that of all ranks, by this one's clock."""

    rank: int
    measured: str = Field(description="how it ended")
    failed_first: bool = Field(description="its failure is the row's")
    reason: str
    peak_gib: float | None
    reserved_gib: float | None
    allocated_after_forward_gib: float | None
    max_tokens: int | None
    samples_per_s: float | None


class StatedTimes(Record):
    """What the material says of the time of a row and of that on one device, each for so many samples."""

    base_s: float
    base_samples: int
    row_s: float
    row_samples: int
    times: float = Field(description="samples a second over those on one device")


class Scaling(Record):
    """A row of several ranks beside ``base``, the row on one device that is most like it; shares are of a step's time.

    times is samples a second over those of base, efficiency the same over the number of ranks.
    """

    row: str
    ranks: int
    stated_ranks: int
    base: str | None
    samples_per_s: float | None
    base_samples_per_s: float | None
    times: float | None
    efficiency: float | None
    stated: StatedTimes | None
    communication_share: float | None
    exposed_communication_share: float | None
    gpu_idle_share: float | None


def rank_reports(result: Result) -> tuple[RankReport, ...]:
    """Return the ranks of a row by number; empty for a row with one process."""
    failed = result.failure.rank if result.failure else None
    return tuple(
        RankReport(
            rank=one.rank,
            measured=ENDINGS[one.outcome],
            failed_first=one.rank == failed,
            reason=one.reason,
            peak_gib=one.memory.peak_gib,
            reserved_gib=one.memory.reserved_gib,
            allocated_after_forward_gib=QUANTITIES["allocated_after_forward_gib"](one),
            max_tokens=one.max_tokens,
            samples_per_s=QUANTITIES["samples_per_s"](one),
        )
        for one in sorted(result.ranks, key=lambda one: one.rank)
    )


def scalings(suite: Suite, run: Run, results: Mapping[str, Result]) -> tuple[Scaling, ...]:
    """Return the rows of the run with several ranks and a result."""
    several = [row for row in run.rows if row in results and stated_settings(suite, run, row).ranks > 1]
    return tuple(_scaling(suite, run, suite.row(row), results) for row in several)


def stated_settings(suite: Suite, run: Run, row: str) -> Settings:
    """Return the row's settings without scaling down."""
    return suite.settings(suite.row(row), run.card)


def base_row(suite: Suite, run: Run, row: Row) -> Row | None:
    """Return the single-device row of the same model, data and precision that shares most settings with ``row``."""
    own = stated_settings(suite, run, row.id).model_dump()

    def alike(other: Row) -> int:
        settings = stated_settings(suite, run, other.id).model_dump()
        if settings["devices"] * settings["nodes"] > 1 or any(settings[name] != own[name] for name in SAME):
            return 0
        return sum(settings[name] == own[name] for name in own)

    best = max(suite.rows_for(run.card), key=alike)
    return best if alike(best) else None


def _scaling(suite: Suite, run: Run, row: Row, results: Mapping[str, Result]) -> Scaling:
    result, base = results[row.id], base_row(suite, run, row)
    base_result = results.get(base.id) if base else None
    speed, base_speed = (value_of("samples_per_s", one) if one else None for one in (result, base_result))
    times = speed / base_speed if speed and base_speed else None
    ranks = result.spec.settings.ranks
    return Scaling(
        row=row.id,
        ranks=ranks,
        stated_ranks=stated_settings(suite, run, row.id).ranks,
        base=base.id if base else None,
        samples_per_s=speed,
        base_samples_per_s=base_speed,
        times=times,
        efficiency=times / ranks if times else None,
        stated=_stated(base, base_result, row, result) if base and base_result else None,
        communication_share=value_of("communication_share", result),
        exposed_communication_share=result.speed.exposed_communication_share if result.speed else None,
        gpu_idle_share=value_of("gpu_idle_share", result),
    )


def _stated(base: Row, base_result: Result, row: Row, result: Result) -> StatedTimes | None:
    base_s, row_s = _stated_s(base), _stated_s(row)
    base_samples, row_samples = _samples(base_result), _samples(result)
    if not (base_s and row_s and base_samples and row_samples):
        return None
    times = row_samples / row_s / (base_samples / base_s)
    return StatedTimes(base_s=base_s, base_samples=base_samples, row_s=row_s, row_samples=row_samples, times=times)


def _stated_s(row: Row) -> float | None:
    """Return the lab's training time, in the middle of its bounds."""
    figures = [figure for figure in row.expect.figures if figure.quantity == "train_s"]
    return (figures[0].low + figures[0].high) / 2 if figures else None


def _samples(result: Result) -> int:
    """Return the number of samples of the full-length training; 0 if the row does not record it."""
    settings = result.spec.settings
    return result.speed.planned_micro_steps * settings.batch_size * settings.world_size if result.speed else 0
