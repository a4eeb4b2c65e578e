"""Run an unchanged program on a GPU until a prediction of it would stop; compare the memory of both."""

import json
import os
import runpy
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.prediction.peak import MemoryTags

SCRIPTS = Path(__file__).parent / "scripts"
STEPS = 2


class FakeTags(MemoryTags):
    """Fake of the phantom device's tags, for runs on a real GPU: no event is counted and nothing is tagged."""

    event_count = 0

    def __init__(self) -> None:
        self.phases, self.last_tagged_event = [(0, "load")], 0

    def _tag(self, kind: str, tensors: object) -> None: ...


def watch() -> None:
    """End this process before its third optimizer step; print its memory, or write it to a file in $MEASURED_FOLDER."""
    import torch

    from experiments.prediction.script.traced.watch import TrainingWatcher

    def enough() -> None:
        torch.cuda.synchronize()
        peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        found = {"peak_gib": peak / 2**30, "reserved_gib": reserved / 2**30}
        rank = int(os.environ.get("RANK", "0"))
        line = json.dumps({"rank": rank, **found})
        if folder := os.environ.get("MEASURED_FOLDER"):
            Path(folder, f"{rank}.json").write_text(line)
        else:
            print(line, flush=True)
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        os._exit(0)

    TrainingWatcher(FakeTags(), STEPS, enough).install()


def measure_one(words: list[str]) -> None:
    """Run a file or a module (`-m MODULE`) in this process until its third optimizer step, and print its memory."""
    watch()
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = words, str(Path(words[0]).parent)
        runpy.run_path(words[0], run_name="__main__")


class ErrorTable:
    """Errors of predictions against measurements, as cells and lines of a table."""

    def __init__(self) -> None:
        self._found: list[tuple[float, ...]] = []

    def cells(self, pairs: Sequence[tuple[float, float]]) -> str:
        """Return the cells of one case. pairs: measured and predicted peak, and reserved memory, GiB."""
        self._found.append(tuple(predicted / measured - 1 for measured, predicted in pairs))
        cells = [f"{a:.3f} | {b:.3f} | {error:+.2%}" for (a, b), error in zip(pairs, self._found[-1], strict=True)]
        return " | ".join(cells)

    def summary(self) -> list[str]:
        """Return the median and the worst error of the peaks, and of the reserved memory."""
        lines = []
        for name, own in zip(("peak", "reserved"), zip(*self._found, strict=True), strict=True):
            sizes = [abs(error) for error in own]
            lines.append(
                f"\n{name}: median {statistics.median(sizes):.2%}, worst {max(sizes):.2%} of {len(sizes)} cases"
            )
        return lines
