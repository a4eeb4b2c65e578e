"""Runs of a whole term: copies of a lab's stored results, with the noise of the stored times."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from statistics import mean, stdev
from typing import Any

from experiments.results.run_folder import RUN_FILE, RunFolder
from tests.support.results.evidence import EVIDENCE

RUN = EVIDENCE / "single_gpu_blip2-h100_94gb-full-verdict"
IQR_OF_A_NORMAL = 1.349
Change = Callable[[dict[str, Any]], None]


def time_noise() -> float:
    """Return the relative standard deviation of a time between the stored repetitions of one row."""
    rounds = json.loads((EVIDENCE / "taught_speed-ddp-2gpus.json").read_text())["rounds"]
    plain = [plain_s for plain_s, _ in rounds]
    return stdev(plain) / mean(plain)


def repeat_run(folder: Path, number: int, change: Change | None = None, source: Path = RUN) -> RunFolder:
    """Write a copy of the run ``source`` that began ``number`` weeks later, with noise; return its folder.

    change: a function that changes each result.
    """
    random, folder = Random(number), folder / f"week-{number:02}"
    folder.mkdir(parents=True)
    later = timedelta(weeks=number)
    run = json.loads((source / RUN_FILE).read_text())
    run["started_at"] = _later(run["started_at"], later)
    (folder / RUN_FILE).write_text(json.dumps(run))
    with (folder / "results.jsonl").open("w") as file:
        for result in _results(source):
            result["started_at"] = _later(result["started_at"], later)
            _make_noise(result, random)
            if change:
                change(result)
            file.write(json.dumps(result) + "\n")
    return RunFolder(folder)


def _results(source: Path) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for line in (source / "results.jsonl").read_text().splitlines())


def _later(moment: str, later: timedelta) -> str:
    return (datetime.fromisoformat(moment).astimezone(UTC) + later).isoformat(timespec="seconds")


def _make_noise(result: dict[str, Any], random: Random) -> None:
    """Add noise: to times, as between stored runs and between steps; to losses, as much as bfloat16 rounds."""
    speed = result["speed"]
    if speed:
        of_steps = speed["spread"] / IQR_OF_A_NORMAL / max(speed["measured_micro_steps"], 1) ** 0.5
        slower = max(0.5, 1 + random.gauss(0, time_noise()) + random.gauss(0, of_steps))
        slow_down(result, slower)
    result["losses"] = [loss * (1 + random.gauss(0, 2**-9)) if loss != "NaN" else loss for loss in result["losses"]]


def slow_down(result: dict[str, Any], times: float) -> None:
    """Make the steps of a row take ``times`` as long."""
    speed = result["speed"]
    for name in ("step_s", "micro_step_s", "train_s"):
        speed[name] *= times
    speed["samples_per_s"] /= times
