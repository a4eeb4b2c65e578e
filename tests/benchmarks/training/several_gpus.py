"""Compare the predicted time of an optimizer step on several GPUs with the measured one.

    python -m tests.benchmarks.training.several_gpus

Reads the stored runs at full size, and predicts each row that trained on several GPUs, on the GPU model that measured
it. The rows are traced here, without a GPU. The batches have the median length of the longest texts over all ranks.
Beside each prediction: the error with the host's speed of that run, which is fitted to the run's rows on one GPU only.
Writes several_gpus.md and several_gpus.json into the folder experiments/evidence/prediction_h200. Errors are relative
to the measurement; negative: too low.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from experiments.history.durations import StoredTimes
from experiments.prediction import tracer
from experiments.prediction.phantom.library import Phantom, load
from experiments.results.run_folder import Run
from experiments.results.schema import Result
from experiments.system.files import cache_folder
from tests.benchmarks.prediction.tables import EVIDENCE, markdown, percent, relative_error, summary, write
from tests.benchmarks.training.step_times import TimedRow, trace_row

HEAD = [
    "run",
    "row",
    "GPUs",
    "limited by",
    "predicted, s",
    "measured, s",
    "error",
    "host's time in this run",
    "error with it",
    "links, s",
    "measured in links, s",
]
WAITED = {"waited_in_steps": True}
"""How the stored runs waited for the GPU (see step_times.Waits)."""
SLOWNESS = tuple(number / 20 for number in range(10, 51))
"""Times of the host, relative to the predicted one, among which a fit chooses."""


def stored_rows() -> dict[str, list[Result]]:
    """Return the rows with a measured speed of each stored run that trained rows on several GPUs."""
    found: dict[str, list[Result]] = {}
    for run, one in StoredTimes.read(EVIDENCE / "none").results:
        if is_measured(run, one):
            found.setdefault(run.run_id, []).append(one)
    return {run_id: rows for run_id, rows in found.items() if any(len(one.ranks) > 1 for one in rows)}


def is_measured(run: Run, result: Result) -> bool:
    """Return whether a row trained at full size with a measured speed."""
    return run.size == "full" and result.outcome == "fits" and result.speed is not None


def predicted_step_s(row: TimedRow, slowness: float) -> float:
    """Return the predicted seconds of a step with a host that needs ``slowness`` times the predicted time."""
    return row._replace(steps=[[part.scaled(slowness, 1.0) for part in step] for step in row.steps]).predicted_s()


def fitted_slowness(rows: Sequence[TimedRow]) -> float | None:
    """Return the slowness with the smallest mean error over the rows; None without rows."""
    if not rows:
        return None
    return min(
        SLOWNESS,
        key=lambda one: fmean(abs(relative_error(predicted_step_s(row, one), row.speed.step_s)) for row in rows),
    )


def compare_run(run_id: str, results: Sequence[Result], phantom: Phantom) -> list[dict[str, Any]]:
    """Return the predicted and the measured step of each row of a run on several GPUs."""
    rows = [(len(one.ranks), trace_row(one.model_dump(mode="json") | WAITED, phantom)) for one in results]
    slowness = fitted_slowness([row for ranks, row in rows if ranks <= 1])
    return [compare_row(run_id, ranks, row, slowness) for ranks, row in rows if ranks > 1]


def compare_row(run_id: str, gpus: int, row: TimedRow, slowness: float | None) -> dict[str, Any]:
    """Return the predicted and the measured step of a row. slowness: of the host in this run, if it is known."""
    step_s = row.speed.step_s
    return {
        "run": run_id,
        "row": f"{row.spec.suite}/{row.spec.row}",
        "gpus": gpus,
        "limited_by": row.time.limited_by,
        "predicted_s": row.time.step_s,
        "measured_s": step_s,
        "error": relative_error(row.time.step_s, step_s),
        "slowness": slowness,
        "known_host_error": relative_error(predicted_step_s(row, slowness), step_s) if slowness else None,
        "link_s": row.time.link_s,
        "measured_link_s": (row.speed.communication_share or 0.0) * step_s,
    }


def cells(one: Mapping[str, Any]) -> list[str]:
    """Return the cells of a row of the table."""
    names = [str(one[name]) for name in ("run", "row", "gpus", "limited_by")]
    times = [f"{one[name]:.3f}" for name in ("predicted_s", "measured_s")]
    host = [f"{one['slowness']:.2f}" if one["slowness"] else "n/a", percent(one["known_host_error"])]
    return [*names, *times, percent(one["error"]), *host, f"{one['link_s']:.3f}", f"{one['measured_link_s']:.3f}"]


def main() -> None:
    """Compare all rows and write the table."""
    phantom = load(cache_folder())
    tracer.import_libraries(phantom)
    found = [one for run_id, results in stored_rows().items() for one in compare_run(run_id, results, phantom)]
    by_gpus = {
        count: [one["error"] for one in found if one["gpus"] == count] for count in {one["gpus"] for one in found}
    }
    of_all = [one["error"] for one in found]
    known = [one["known_host_error"] for one in found if one["slowness"]]
    means = {count: fmean(map(abs, errors)) for count, errors in sorted(by_gpus.items())}
    errors = {"mean": fmean(map(abs, of_all))} | summary(of_all)
    known_host = {"mean": fmean(map(abs, known)), "rows": len(known)} | summary(known)
    text = markdown(HEAD, [*map(cells, found)]) + (
        f"\nError: mean {errors['mean']:.1%}, worst {errors['worst']:.1%} of {len(found)} rows; "
        + ", ".join(f"on {count} GPUs mean {mean:.1%} of {len(by_gpus[count])}" for count, mean in means.items())
        + f"\n\nWith the host's speed of the run: mean {known_host['mean']:.1%}, worst {known_host['worst']:.1%}"
        f" of {known_host['rows']} rows\n"
    )
    write(
        EVIDENCE,
        "several_gpus",
        text,
        {"rows": found, "errors": errors, "means": means, "known_host_errors": known_host},
    )


if __name__ == "__main__":
    main()
