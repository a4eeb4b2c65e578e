"""Compare the GPU seconds of a suite at lengths as-taught and verdict, from stored results.

    python -m tests.benchmarks.tool_speed.run_length RUN_FOLDER [AS_TAUGHT_RUN_FOLDER]

Measured: the rows in both folders. Computed: for every row of RUN_FOLDER that fits, its GPU seconds plus the time of
the micro-steps that `--length verdict` omits, at the measured time of a step.
"""

import sys
from pathlib import Path

from experiments.results.run_folder import RunFolder
from experiments.results.schema import Result


def as_taught_gpu_s(result: Result) -> float:
    """Return the GPU seconds of the row at length as-taught; if it did not fit, those of the run."""
    assert result.gpu_s is not None
    if result.speed is None or result.outcome != "fits":
        return result.gpu_s
    left_out = result.speed.planned_micro_steps - result.speed.micro_steps
    return result.gpu_s + left_out * result.speed.step_s / result.spec.settings.accumulate


def comparison_line(what: str, taught_s: float, verdict_s: float) -> str:
    """Return one line of the comparison, GPU seconds."""
    return f"{what}: {taught_s:.1f} s as taught, {verdict_s:.1f} s for a verdict, ratio {taught_s / verdict_s:.2f}"


def main() -> None:
    verdict = RunFolder(Path(sys.argv[1])).results()
    taught = RunFolder(Path(sys.argv[2])).results() if len(sys.argv) > 2 else {}
    both = [(verdict[row].gpu_s or 0, taught[row].gpu_s or 0) for row in taught if row in verdict]
    if both:
        verdict_s, taught_s = map(sum, zip(*both, strict=True))
        print(comparison_line(f"measured, {len(both)} rows", taught_s, verdict_s))
    shortened = {row: result for row, result in verdict.items() if result.spec.settings.max_steps < 0}
    for name, rows in (("all rows", verdict), ("rows without a limit of steps", shortened)):
        short, long = sum(one.gpu_s or 0.0 for one in rows.values()), sum(map(as_taught_gpu_s, rows.values()))
        print(comparison_line(f"computed, {name}", long, short))


if __name__ == "__main__":
    main()
