"""Merge the measurements of several ranks into the measurements of the row, with pure functions."""

from collections.abc import Sequence
from statistics import mean

from experiments.results.schema import Measured, Outcome, Progress, Speed

SEVERITY: tuple[Outcome, ...] = ("timeout", "oom", "host_oom", "error")
"""Outcomes of failed ranks, the most severe first."""
PEER_SIGNALS = ("signal 6", "signal 15")
"""Failures that follow from the failure of another rank: SIGABRT by a library, SIGTERM by the launcher."""
LOST_NODE_KIND = "node lost"


def merge_ranks(ranks: Sequence[Measured]) -> Measured:
    """Return the row's measurements, merged from the measurements of its ranks.

    ranks: sorted by the time at which the ranks ended. The row's failure is the failure of one rank; the other ranks
    fail as a consequence or are stopped. If several ranks failed, out of memory has priority over a killed rank or a
    lost node, and these have priority over any other failure. Memory is taken from the rank with the highest peak,
    speed from the slowest rank. Losses are means over the ranks.
    """
    first = min(ranks, key=lambda measured: measured.rank)
    with_highest_peak = max(ranks, key=lambda measured: measured.memory.peak_gib or 0.0)
    failed = root_failure(ranks)
    return first.model_copy(
        update={
            "outcome": failed.outcome if failed else "fits",
            "reason": f"rank {failed.rank}: {failed.reason}"
            if failed
            else f"{with_highest_peak.reason}, of rank {with_highest_peak.rank}",
            "failure": failed.failure if failed else None,
            "device": first.device.model_copy(update={"count": len(ranks)}),
            "memory": with_highest_peak.memory,
            "speed": None if failed else slowest_speed([measured.speed for measured in ranks]),
            "losses": tuple(map(mean, zip(*(measured.losses for measured in ranks), strict=False))),
            "max_tokens": max(measured.max_tokens or 0 for measured in ranks) or None,
            "gpu_s": sum(measured.gpu_s or 0.0 for measured in ranks) or None,
        }
    )


def root_failure(ranks: Sequence[Measured]) -> Measured | None:
    """Return the rank with the most severe failure, which is the failure of the row; None if no rank failed."""
    return min((measured for measured in ranks if measured.failure), key=_severity, default=None)


def slowest_speed(speeds: Sequence[Speed | None]) -> Speed | None:
    """Return the speed of the slowest rank; None if a rank has not measured its speed."""
    known = [speed for speed in speeds if speed]
    return max(known, key=lambda speed: speed.step_s) if known and len(known) == len(speeds) else None


def slowest_progress(progresses: Sequence[Progress]) -> Progress:
    """Return the progress of the slowest rank, with the memory of the rank with the highest peak."""
    slowest = min(progresses, key=lambda progress: progress.micro_steps)
    with_highest_peak = max(progresses, key=lambda progress: progress.memory.peak_gib or 0.0)
    return slowest.model_copy(
        update={"memory": with_highest_peak.memory, "allocated_gib": with_highest_peak.allocated_gib}
    )


def _severity(measured: Measured) -> tuple[int, bool]:
    assert measured.failure is not None
    kind = measured.failure.kind
    killed = kind == LOST_NODE_KIND or (kind.startswith("signal ") and kind not in PEER_SIGNALS)
    return SEVERITY.index(measured.outcome), not killed
