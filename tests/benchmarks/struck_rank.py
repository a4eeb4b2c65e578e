"""A rank of a real row in which something strikes the second rank in its third micro-step, as STRIKE says.

Started like experiments.training.rank; see failing_ranks.py.
"""

import os
import signal
import sys
import time

import torch

from experiments.training import rank
from experiments.training.measure.probe import Probe

STRUCK_RANK = 1
MICRO_STEP = 2
BEYOND_ANY_CARD = 1 << 44


def strike() -> None:
    """Whatever STRIKE names: oom, killed or hang. A line in the log says when, in seconds since 1970."""
    print("struck at", time.time(), flush=True)
    match os.environ["STRIKE"]:
        case "oom":
            torch.empty(BEYOND_ANY_CARD, dtype=torch.uint8, device="cuda")
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            time.sleep(3600)


class StruckProbe(Probe):
    """The probe of a rank, in whose forward pass it strikes."""

    def before_backward(self) -> None:
        if self.micro_steps == MICRO_STEP and int(os.environ["RANK"]) == STRUCK_RANK:
            strike()
        super().before_backward()


if __name__ == "__main__":
    rank.Probe = StruckProbe  # type: ignore[misc]
    sys.exit(rank.main(*sys.argv[1:]))
