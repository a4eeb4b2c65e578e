"""Compare the predicted time of an optimizer step on several GPUs with the measured one.

    python -m tests.benchmarks.training.several_gpus

Reads the stored runs at full size, and predicts each row that trained on several GPUs, on the GPU model that measured
it. The rows are traced here, without a GPU. The batches have the median length of the longest texts over all ranks.
Writes several_gpus.md and several_gpus.json into the folder experiments/evidence/prediction_h200. Errors are relative
to the measurement; negative: too low.
"""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from experiments.history.durations import StoredTimes
from experiments.prediction import tracer
from experiments.prediction.phantom.library import load
from experiments.results.run_folder import Run
from experiments.results.schema import Result
from experiments.system.files import cache_folder
from tests.benchmarks.prediction.tables import EVIDENCE, markdown, percent, relative_error, summary, write
from tests.benchmarks.training.step_times import TimedRow, trace_row

HEAD = ["run", "row", "GPUs", "limited by", "predicted, s", "measured, s", "error", "links, s", "measured in links, s"]


def stored_rows() -> list[tuple[Run, Result]]:
    """Return the stored rows that trained on several GPUs and have a measured speed."""
    stored = StoredTimes.read(EVIDENCE / "none").results
    return [(run, one) for run, one in stored if run.size == "full" and len(one.ranks) > 1 and one.speed]


def compare_row(run: Run, result: Result, row: TimedRow) -> dict[str, Any]:
    """Return the predicted and the measured step of a row."""
    step_s = row.speed.step_s
    return {
        "run": run.run_id,
        "row": f"{row.spec.suite}/{row.spec.row}",
        "gpus": len(result.ranks),
        "limited_by": row.time.limited_by,
        "predicted_s": row.time.step_s,
        "measured_s": step_s,
        "error": relative_error(row.time.step_s, step_s),
        "link_s": row.time.link_s,
        "measured_link_s": (row.speed.communication_share or 0.0) * step_s,
    }


def cells(one: Mapping[str, Any]) -> list[str]:
    """Return the cells of a row of the table."""
    names = [str(one[name]) for name in ("run", "row", "gpus", "limited_by")]
    times = [f"{one[name]:.3f}" for name in ("predicted_s", "measured_s")]
    return [*names, *times, percent(one["error"]), f"{one['link_s']:.3f}", f"{one['measured_link_s']:.3f}"]


def main() -> None:
    """Compare all rows and write the table."""
    phantom = load(cache_folder())
    tracer.import_libraries(phantom)
    found = [
        compare_row(run, result, trace_row(result.model_dump(mode="json"), phantom)) for run, result in stored_rows()
    ]
    by_gpus = {
        count: [one["error"] for one in found if one["gpus"] == count] for count in {one["gpus"] for one in found}
    }
    of_all = [one["error"] for one in found]
    means = {count: fmean(map(abs, errors)) for count, errors in sorted(by_gpus.items())}
    errors = {"mean": fmean(map(abs, of_all))} | summary(of_all)
    text = markdown(HEAD, [*map(cells, found)]) + (
        f"\nError: mean {errors['mean']:.1%}, worst {errors['worst']:.1%} of {len(found)} rows; "
        + ", ".join(f"on {count} GPUs mean {mean:.1%} of {len(by_gpus[count])}" for count, mean in means.items())
        + "\n"
    )
    write(EVIDENCE, "several_gpus", text, {"rows": found, "errors": errors, "means": means})


if __name__ == "__main__":
    main()
