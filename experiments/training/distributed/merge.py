"""What several ranks measured, as what the row did. Pure functions."""

from collections.abc import Sequence
from statistics import mean

from experiments.results.schema import Measured, Outcome, Progress, Speed

GRAVEST: tuple[Outcome, ...] = ("timeout", "oom", "host_oom", "error")
SENT_BY_OTHERS = ("signal 6", "signal 15")
NODE_LOST = "node lost"


def merged(ranks: Sequence[Measured]) -> Measured:
    """The row of these ranks, which come in the order in which they ended.

    One rank's failure is the row's; the others fail for want of it, or are ended. Out of memory comes before a rank
    that was killed or whose node is lost, and that before any other failure. Memory is that of the rank with the
    highest peak, speed that of the slowest; losses are means over the ranks.
    """
    first = min(ranks, key=lambda measured: measured.rank)
    fullest = max(ranks, key=lambda measured: measured.memory.peak_gib or 0.0)
    failed = first_failed(ranks)
    return first.model_copy(
        update={
            "outcome": failed.outcome if failed else "fits",
            "reason": f"rank {failed.rank}: {failed.reason}" if failed else f"{fullest.reason}, of rank {fullest.rank}",
            "failure": failed.failure if failed else None,
            "device": first.device.model_copy(update={"count": len(ranks)}),
            "memory": fullest.memory,
            "speed": None if failed else slowest([measured.speed for measured in ranks]),
            "losses": tuple(map(mean, zip(*(measured.losses for measured in ranks), strict=False))),
            "max_tokens": max(measured.max_tokens or 0 for measured in ranks) or None,
            "gpu_s": sum(measured.gpu_s or 0.0 for measured in ranks) or None,
        }
    )


def first_failed(ranks: Sequence[Measured]) -> Measured | None:
    """The rank whose failure is the row's; None where none failed."""
    return min((measured for measured in ranks if measured.failure), key=_gravity, default=None)


def slowest(speeds: Sequence[Speed | None]) -> Speed | None:
    """The speed of the slowest rank; None unless all have one."""
    there = [speed for speed in speeds if speed]
    return max(there, key=lambda speed: speed.step_s) if there and len(there) == len(speeds) else None


def slowest_progress(progresses: Sequence[Progress]) -> Progress:
    """Where a row of several ranks is: where the last of them is, with the memory of the fullest."""
    last = min(progresses, key=lambda progress: progress.micro_steps)
    fullest = max(progresses, key=lambda progress: progress.memory.peak_gib or 0.0)
    return last.model_copy(update={"memory": fullest.memory, "allocated_gib": fullest.allocated_gib})


def _gravity(measured: Measured) -> tuple[int, bool]:
    assert measured.failure is not None
    kind = measured.failure.kind
    killed = kind == NODE_LOST or (kind.startswith("signal ") and kind not in SENT_BY_OTHERS)
    return GRAVEST.index(measured.outcome), not killed
