"""Functions of compare.py and estimators.py: read measured cases, compute errors, write tables."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import experiments
from experiments.prediction.predict import predict
from experiments.results.predictions import Prediction
from experiments.results.schema import Result, read_result, read_results
from experiments.suites.row_spec import RowSpec
from experiments.system.files import cache_folder, write_atomically
from tests.benchmarks.prediction.measure import CASES

EVIDENCE = Path(experiments.__file__).parent / "evidence" / "prediction_h200"


def folder_of(doc: str | None) -> Path:
    """Return the folder on the command line, or the folder of the stored measurements."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=EVIDENCE)
    folder: Path = parser.parse_args().folder
    return folder


def measured(folder: Path) -> list[Result]:
    """Return the completely measured cases: from cases.jsonl, else from the folder that measure.py writes."""
    packed = folder / f"{CASES}.jsonl"
    measured_here = [read_result(path) for path in sorted((folder / CASES).glob("*.json"))]
    results = list(read_results(packed).values()) if packed.exists() else measured_here
    if not results:
        raise SystemExit(f"{folder}: has no measured cases; run python -m tests.benchmarks.prediction.measure")
    return [result for result in results if result.outcome == "fits"]


def compared(results: Sequence[Result]) -> list[tuple[Result, Prediction]]:
    """Return these cases with their predictions. Prints each case as soon as its prediction ends, also if it fails."""
    found: dict[str, Prediction] = {}

    def watch(spec: RowSpec, prediction: Prediction, cached: bool) -> None:
        found[spec.row] = prediction
        print(f"{spec.row}: {prediction.peak_gib:.2f} GiB", flush=True)

    predict(
        [result.spec for result in results],
        cache_folder(),
        watch,
        on_failure=lambda spec, problem: print(problem, flush=True),
    )
    return [(result, found[result.spec.row]) for result in results if result.spec.row in found]


def relative_error(estimate: float, measured: float) -> float:
    """Return the error of an estimate, relative to the measurement; negative: too low."""
    return estimate / measured - 1


def summary(errors: Sequence[float]) -> dict[str, float]:
    """Return the median and the maximum of the absolute errors."""
    return {"median": median(map(abs, errors)), "worst": max(map(abs, errors))}


def percent(share: float | None) -> str:
    return "n/a" if share is None else f"{share:+.2%}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table; the first column is text, the others are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def write(folder: Path, name: str, text: str, data: Any) -> None:
    """Print ``text``, and write it and ``data``: FOLDER/NAME.md and NAME.json."""
    print(text)
    write_atomically(folder / f"{name}.md", text)
    write_atomically(folder / f"{name}.json", json.dumps(data, indent=1) + "\n")
