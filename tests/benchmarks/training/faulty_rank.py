"""Run one rank of a real row; the second rank fails in its third micro-step. The variable FAULT names the fault.

Started like experiments.training.rank; see failing_ranks.py.
"""

import os
import signal
import sys
import time

import torch

from experiments.training import rank
from experiments.training.measure.probe import Probe

FAULTY_RANK = 1
MICRO_STEP = 2
BEYOND_ANY_CARD = 1 << 44


def inject_fault() -> None:
    """Inject the fault in FAULT: oom, killed or hang. Prints the time into the log, in seconds since 1970."""
    print("fault injected at", time.time(), flush=True)
    match os.environ["FAULT"]:
        case "oom":
            torch.empty(BEYOND_ANY_CARD, dtype=torch.uint8, device="cuda")
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            time.sleep(3600)


class FaultyProbe(Probe):
    """Probe that injects the fault at the end of a forward pass."""

    def before_backward(self) -> None:
        if self.micro_steps == MICRO_STEP and int(os.environ["RANK"]) == FAULTY_RANK:
            inject_fault()
        super().before_backward()


if __name__ == "__main__":
    rank.Probe = FaultyProbe  # type: ignore[attr-defined]
    sys.exit(rank.main(*sys.argv[1:]))
