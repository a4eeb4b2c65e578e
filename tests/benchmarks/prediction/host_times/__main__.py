"""Compare the predicted time of the host in each pass of a training step with the measured one.

    python -m tests.benchmarks.prediction.host_times measure FILE ROW...   on a GPU
    python -m tests.benchmarks.prediction.host_times compare

ROW: a row of experiments/evidence/prediction_h200/step_times.jsonl. ``measure`` appends to FILE, for each row, the
median seconds of the host between the beginning and the end of a pass. The host limits a pass if the GPU has done all
its work at the end. ``compare`` reads experiments/evidence/prediction_h200/host_times.jsonl. Its first line compares
two hosts: the time that the host of the measured rows needs for operations of the H200 table, divided by their time in
the table. Each row is traced here, and the predicted time is multiplied by that ratio. Writes host_times.md and
host_times.json beside the file. Errors are relative to the measurement; negative: too low.
"""

import json
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from experiments.prediction import tracer
from experiments.prediction.phantom.library import Phantom, load
from experiments.prediction.times import host
from experiments.prediction.times.phase import RecordedPhase
from experiments.prediction.times.step import phases_of_step, share_of_new, table_for_card
from experiments.prediction.times.table import read_lines
from experiments.results.schema import WARM_UP_STEPS, Phase
from experiments.suites.cards import card_named
from experiments.suites.row_spec import RowSpec
from experiments.system.files import cache_folder
from provision.temporary import TemporaryFolder
from tests.benchmarks.forks import run_in_fork
from tests.benchmarks.prediction.tables import EVIDENCE, markdown, percent, relative_error, summary, write

PASSES: tuple[Phase, ...] = ("forward", "backward")
FILE = EVIDENCE / "host_times.jsonl"
CARD = "h200_141gb"
MICRO_STEPS = 24
"""About how many micro-steps a measured row runs. Texts of a new length need new kernels."""


def measure_row(spec: RowSpec) -> dict[str, Any]:
    """Train a row on the GPU; return its speed, and the median seconds of host and lag in each pass."""
    import torch

    from experiments.training import rank
    from experiments.training.measure.meters import CudaMeter

    begun: list[tuple[str, float, Any]] = []

    class Marks(CudaMeter):
        """Meter that notes when the host and the GPU begin a phase."""

        def begin(self, phase: Phase) -> None:
            self.note(phase)
            super().begin(phase)

        def end_micro_step(self) -> None:
            self.note("end")

        def note(self, name: str) -> None:
            if not begun:
                torch.cuda.synchronize()
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            begun.append((name, time.perf_counter(), event))

    with TemporaryFolder("row") as folder:
        measured = rank.run_rank(spec, folder, Marks([0]))
    torch.cuda.synchronize()
    _, first_s, first = begun[0]
    host_s, lag_s = defaultdict(list), defaultdict(list)
    skipped = [place for place, (name, *_) in enumerate(begun) if name == "end"][
        WARM_UP_STEPS * spec.settings.accumulate - 1
    ]
    for (name, before_s, _), (_, after_s, event) in zip(begun[skipped:], begun[skipped + 1 :], strict=False):
        host_s[name].append(after_s - before_s)
        lag_s[name].append(first.elapsed_time(event) / 1000 - (after_s - first_s))
    passes = {name: {"host_s": median(host_s[name]), "lag_s": median(lag_s[name])} for name in PASSES}
    found = {name: getattr(measured, name).model_dump(mode="json") for name in ("speed", "device")}
    return {"spec": spec.model_dump(mode="json"), **found, "passes": passes}


def measure(file: Path, rows: Sequence[str]) -> None:
    """Measure rows, each in a separate process, and append a line for each."""
    lines = [line for folder in (EVIDENCE, EVIDENCE / "repeated") for line in read_lines(folder / "step_times.jsonl")]
    specs = {
        spec.row: spec for spec in (RowSpec.model_validate(line["spec"]) for line in lines) if spec.card != "h100_94gb"
    }
    for row in rows:
        found = run_in_fork(measure_row, specs[row])
        with file.open("a") as out:
            out.write(json.dumps(found) + "\n")


def trace_passes(spec: RowSpec, phantom: Phantom) -> dict[Phase, float]:
    """Return the predicted seconds of the host in each pass of a micro-step."""
    from experiments.training.data.texts import batch_lengths

    found: dict[Phase, float] = {}

    def keep(recorded: Sequence[RecordedPhase], *_: Any) -> None:
        new_lengths = share_of_new(batch_lengths(spec)[:MICRO_STEPS])
        table, card = table_for_card(CARD), card_named(CARD)
        phases = phases_of_step(recorded, spec.settings.accumulate, None, table, card, new_lengths)
        for name in PASSES:
            found[name] = sum(one.host_s for one in phases if one.phase == name) / spec.settings.accumulate

    setattr(tracer, "step_time", keep)  # noqa: B010 - a function of a module
    tracer.trace(spec.model_copy(update={"length": "peak"}), [spec.card], phantom)
    return found


def compare(lines: Sequence[dict[str, Any]], ratio: float, phantom: Phantom) -> list[dict[str, Any]]:
    """Return the measured and the predicted seconds of each pass of each row."""
    found: list[dict[str, Any]] = []
    predicted: dict[str, dict[Phase, float]] = {}
    for line in lines:
        spec = RowSpec.model_validate(line["spec"])
        if spec.row not in predicted:
            predicted[spec.row] = run_in_fork(trace_passes, spec, phantom)
        for name in PASSES:
            predicted_s, measured_s = ratio * predicted[spec.row][name], line["passes"][name]["host_s"]
            found.append(
                {
                    "row": f"{spec.suite}/{spec.row}",
                    "pass": name,
                    "predicted_s": predicted_s,
                    "measured_s": measured_s,
                    "lag_s": line["passes"][name]["lag_s"],
                    "error": relative_error(predicted_s, measured_s),
                }
            )
    return found


def main(words: Sequence[str]) -> None:
    """Measure rows, or compare the stored measurements and write the table."""
    if words[0] == "measure":
        measure(Path(words[1]), words[2:])
        return
    setattr(host, "host_sample_path", lambda _: FILE.with_name("no host"))  # noqa: B010 - a function of a module
    first, *lines = map(json.loads, FILE.read_text().splitlines())
    phantom = load(cache_folder())
    tracer.import_libraries(phantom)
    found = compare(lines, first["host_ratio"], phantom)
    errors = {name: [one["error"] for one in found if one["pass"] == name] for name in PASSES}
    head = ["row", "pass", "predicted, s", "measured, s", "the GPU lags by, s", "error"]
    times = ("predicted_s", "measured_s", "lag_s")
    cells = [[one["row"], one["pass"], *(f"{one[name]:.3f}" for name in times), percent(one["error"])] for one in found]
    means: dict[str, dict[str, Any]] = {
        name: {"mean": fmean(map(abs, each)), "bias": fmean(each)} | summary(each) for name, each in errors.items()
    }
    text = markdown(head, cells) + "".join(
        f"\nError of the {name} pass: mean {one['mean']:.1%}, with its sign {one['bias']:+.1%}\n"
        for name, one in means.items()
    )
    write(EVIDENCE, "host_times", text, {"rows": found, "errors": means, **first})


if __name__ == "__main__":
    main(sys.argv[1:])
