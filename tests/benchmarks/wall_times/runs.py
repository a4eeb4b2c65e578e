"""Predict how long whole runs take, then run them, on a machine with two H200.

    python -m tests.benchmarks.wall_times.runs predict FILE
    python -m tests.benchmarks.wall_times.runs run FOLDER [NAME...]
    python -m tests.benchmarks.wall_times.runs record FILE RUN...

The runs are RUNS. ``predict`` needs no GPU. It writes the time of each run and of its rows, in two ways: with the steps
that stored runs of the same rows measured on that chip, and with predicted steps. ``run`` runs the runs of these names
(default: all) one after another, and writes the seconds of each command to FOLDER/commands.json. ``record`` writes what
a comparison needs of the folders of finished runs.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from experiments.errors import InputError
from experiments.history.durations import StoredTimes
from experiments.history.lease_length import ExpectedTimes
from experiments.prediction import tracer
from experiments.prediction.phantom.library import Phantom, load
from experiments.prediction.predict import suite_row_spec
from experiments.results.gpu_load import UTILIZATION_PERIOD_S
from experiments.results.predictions import Prediction
from experiments.results.provenance import git_commit
from experiments.results.run_folder import Run, RunFolder
from experiments.results.schema import Result
from experiments.runners.local.resources import most_memory_first
from experiments.suites.choices import Length
from experiments.suites.row_spec import RowSpec
from experiments.suites.suite import suite_named
from experiments.system.files import cache_folder, write_atomically
from tests.benchmarks.forks import run_in_fork
from tests.benchmarks.prediction.tables import EVIDENCE

RECORDED_FILE = EVIDENCE / "wall_runs.jsonl"
DEVICE, GPUS = "h200_141gb", 2
LEFT_OUT = {"memory", "losses", "telemetry", "versions", "ranks"}


class WallRun(NamedTuple):
    """A run of some rows of a suite."""

    name: str
    suite: str
    card: str
    rows: tuple[str, ...]
    length: Length = "verdict"
    gpus_per_node: int | None = None

    def command(self, results: Path) -> list[str]:
        """Return the arguments of `testbed` that run the rows."""
        options = ["--card", self.card, "--length", self.length, "--no-predict", "--run-id", self.name]
        limit = ["--gpus-per-node", str(self.gpus_per_node)] if self.gpus_per_node else []
        rows = [word for row in self.rows for word in ("--row", row)]
        return ["run", self.suite, *options, "--results", str(results), *limit, *rows]

    def specs(self) -> list[RowSpec]:
        """Return the rows in the order in which they start."""
        suite, found = suite_named(self.suite), []
        for row in map(suite.row, self.rows):
            steady = self.length == "verdict" and row.id in suite.rows_with_utilization()
            changes = {
                "length": self.length,
                "settings": suite.settings(row, self.card, self.gpus_per_node),
                "steady_s": UTILIZATION_PERIOD_S if steady else 0.0,
            }
            found.append(suite_row_spec(suite, row, self.card).model_copy(update=changes))
        return most_memory_first(found)


RUNS = (
    WallRun(
        "blip2",
        "single_gpu_blip2",
        "a100_80gb",
        ("grad-accumulation", "reduced-precision", "mixed-precision", "xxl-sgd"),
        length="as-taught",
    ),
    WallRun(
        "llama",
        "single_gpu_litgpt",
        "a100_80gb",
        (
            *("tiny-baseline", "tiny-reduced-batch", "tiny-accumulation", "tiny-bf16-true", "tiny-bf16-mixed"),
            *("3b-bf16-true", "7b-bf16-true", "13b-adamw", "13b-sgd"),
            *("tiny-lora", "3b-lora", "7b-lora", "7b-qlora", "13b-lora"),
        ),
    ),
    WallRun(
        "ladder",
        "ladder",
        "a100_80gb",
        (
            *("llama-1b", "llama-1b-packed", "llama-3b", "llama-3b-packed", "llama-7b", "llama-7b-packed"),
            *("lora", "lora-batch-16", "opt", "opt-mixed", "xxl-lora", "xxl-lora-bf16", "xxl-lora-batch-64"),
        ),
    ),
    WallRun(
        "beyond",
        "beyond",
        "a100_80gb",
        (
            *("opt", "opt-in-backward", "opt-checkpointing", "xxl-batch-1", "xxl-batch-1-in-backward"),
            *("xxl-batch-1-8bit", "xxl", "llama-1b", "llama-1b-8bit", "llama-13b", "llama-13b-8bit-in-backward"),
        ),
    ),
    WallRun(
        "multi",
        "multi_gpu_litgpt",
        "a100_80gb",
        (
            *("7b-1gpu", "7b-1gpu-acc4", "7b-4gpu-ddp", "7b-4gpu-fsdp", "7b-4gpu-fsdp-b8"),
            *("blip2-1gpu", "blip2-4gpu-ddp"),
        ),
        gpus_per_node=GPUS,
    ),
)


@dataclass(frozen=True)
class FinishedRun:
    """A run and the rows of it that have ended, in the order in which they began."""

    run: Run
    rows: Sequence[Result]

    @property
    def gpus(self) -> int:
        """The number of GPUs of the machine."""
        (number,) = re.findall(r"(\d+) x ", self.run.host)
        return int(number)

    @property
    def started_s(self) -> float:
        """When the run started, seconds since 1970."""
        return datetime.fromisoformat(self.run.started_at).timestamp()

    @property
    def seconds(self) -> float:
        """The time from the start of the run to the end of its last row, s."""
        return max(map(ended_s, self.rows)) - self.started_s

    @property
    def between_rows_s(self) -> Sequence[float]:
        """The time from the end of a row to the start of the next one on the same GPUs, s."""
        ends = [[ended_s(other) for other in self.rows if ended_s(other) <= began_s(row)] for row in self.rows]
        return [began_s(row) - max(before) for row, before in zip(self.rows, ends, strict=True) if before]


def began_s(result: Result) -> float:
    """Return when a row began, seconds since 1970."""
    assert result.timestamps, "a row without timestamps"
    assert result.times, "a row without stages"
    return result.timestamps.started_at - result.times.start_s


def ended_s(result: Result) -> float:
    """Return when a row ended, seconds since 1970."""
    return began_s(result) + result.elapsed_s


def finished_runs() -> list[FinishedRun]:
    """Return the runs in RECORDED_FILE."""
    found = []
    for line in RECORDED_FILE.read_text().splitlines():
        one = json.loads(line)
        rows = sorted(map(Result.model_validate, one["rows"]), key=began_s)
        found.append(FinishedRun(Run.model_validate(one["run"]), rows))
    return found


def predicted_on_device(spec: RowSpec, phantom: Phantom) -> Prediction:
    """Return the prediction of a row for its own card, with the time of a step on DEVICE and the name of DEVICE.

    DEVICE emulates the card: it has the card's limit of memory, and uses the card's kernels.
    """
    own, device = tracer.trace(spec.model_copy(update={"length": "peak"}), [spec.card, DEVICE], phantom)
    return own.model_copy(update={"spec": spec.model_copy(update={"card": DEVICE}), "time": device.time})


def predictions_of(run: WallRun, phantom: Phantom) -> Iterator[Prediction]:
    """Yield the prediction of each row of a run that can be traced."""
    for spec in run.specs():
        try:
            found: Prediction = run_in_fork(predicted_on_device, spec, phantom)
        except (EOFError, InputError, RuntimeError):
            print(f"{run.suite}/{spec.row}: cannot be traced", flush=True)
            continue
        print(f"{run.suite}/{spec.row}: {found.time.step_s if found.time else 0:.3f} s", flush=True)
        yield found


def expected_record(run: WallRun, stored: StoredTimes) -> dict[str, Any]:
    """Return the expected times of a run and of its rows, s."""
    specs = run.specs()
    times = [stored.expected_time(spec, DEVICE) for spec in specs]
    rows = {spec.row: time._asdict() if time else None for spec, time in zip(specs, times, strict=True)}
    return ExpectedTimes({run.suite: times}, GPUS).suite_time(run.suite)._asdict() | {"rows": rows}


def predict_runs(file: Path) -> None:
    """Predict RUNS and write the file."""
    stored = StoredTimes.read(file.parent / "none")
    phantom = load(cache_folder())
    tracer.import_libraries(phantom)
    found: dict[str, Any] = {}
    step_s: dict[str, float] = {}
    for run in RUNS:
        predictions = tuple(predictions_of(run, phantom))
        step_s |= {f"{run.suite}/{one.spec.row}": one.time.step_s for one in predictions if one.time}
        found[run.name] = {
            "command": f"testbed {' '.join(run.command(Path('results')))}",
            "measured_steps": expected_record(run, StoredTimes(stored.results, ())),
            "predicted_steps": expected_record(run, StoredTimes((), predictions)),
        }
    record = {"git_commit": git_commit(), "device": DEVICE, "gpus": GPUS, "card": RUNS[0].card, "step_s": step_s}
    write_atomically(file, json.dumps(record | {"runs": found}, indent=1) + "\n")


def run_all(folder: Path, names: Sequence[str]) -> None:
    """Run the runs of these names, or all; write the seconds of each command."""
    seconds: dict[str, float] = {}
    for run in RUNS:
        if names and run.name not in names:
            continue
        begun = time.monotonic()
        code = subprocess.call([sys.executable, "-m", "experiments", *run.command(folder)])
        seconds[run.name] = time.monotonic() - begun
        print(f"{run.name}: {seconds[run.name]:.1f} s, exit code {code}", flush=True)
        write_atomically(folder / "commands.json", json.dumps(seconds, indent=1) + "\n")


def record_runs(file: Path, folders: Sequence[Path]) -> None:
    """Write what a comparison needs of finished runs, one run a line."""
    lines = []
    for path in folders:
        folder = RunFolder(path)
        rows = [one.model_dump(mode="json", exclude=LEFT_OUT) for one in folder.results().values()]
        lines.append(json.dumps({"run": folder.read_run().model_dump(mode="json"), "rows": rows}))
    write_atomically(file, "\n".join(lines) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("verb", choices=("predict", "run", "record"))
    parser.add_argument("path", type=Path, metavar="PATH", help="file to write, or folder for the runs")
    parser.add_argument("names", nargs="*", metavar="NAME", help="names or folders of runs")
    options = parser.parse_args(arguments)
    if options.verb == "predict":
        predict_runs(options.path)
    elif options.verb == "run":
        run_all(options.path, options.names)
    else:
        record_runs(options.path, [Path(name) for name in options.names])


if __name__ == "__main__":
    main()
