"""Functions of the benchmarks in this folder: read measured cases, compute errors, write tables."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import experiments
from experiments.prediction.predict import predict
from experiments.prediction.script.record import ScriptPrediction
from experiments.results.predictions import Prediction
from experiments.results.schema import Result, read_result, read_results
from experiments.suites.row_spec import RowSpec
from experiments.system.files import cache_folder, write_atomically
from tests.benchmarks.prediction.measure import CASES

EVIDENCE = Path(experiments.__file__).parent / "evidence" / "prediction_h200"
QUANTITIES = {"peak_gib": "peak", "reserved_gib": "reserved", "step_s": "step, s:"}


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
    """Return these cases with their predictions. Prints each case as soon as its prediction ends, even if it fails."""
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


class ErrorRow(NamedTuple):
    """A program's names, its measured and its predicted quantities, and further cells about the time of a step."""

    names: Sequence[Any]
    measured: Mapping[str, Any]
    predicted: Mapping[str, Any]

    def cells(self, quantity: str) -> str:
        """Return measurement, prediction and error; empty cells if one is missing."""
        if (error := self.error(quantity)) is None:
            return " |  | "
        return f"{self.measured[quantity]:.3f} | {self.predicted[quantity]:.3f} | {error:+.2%}"

    def error(self, quantity: str) -> float | None:
        """Return the error relative to the measurement; negative: too low. None if one is missing."""
        measured, predicted = self.measured.get(quantity), self.predicted.get(quantity)
        return relative_error(predicted, measured) if measured and predicted else None


class ErrorTable:
    """A table of programs. names: the heads of the columns that name a program."""

    def __init__(self, *names: str) -> None:
        self._names = names
        self._rows: list[ErrorRow] = []

    def add(self, *names: Any, measured: Mapping[str, Any], predicted: Mapping[str, Any]) -> str:
        """Add a program and return its line. predicted: as ``predicted_quantities`` returns."""
        self._rows.append(ErrorRow(names, measured, predicted))
        return self._line(self._rows[-1])

    def _line(self, row: ErrorRow) -> str:
        cells = [*map(str, row.names), *(row.cells(quantity) for quantity in self._quantities())]
        if "step_s" in self._quantities():
            cells += [row.predicted.get("limited_by") or "", row.predicted.get("unmeasured") or ""]
        return f"| {' | '.join(cells)} |"

    def _quantities(self) -> list[str]:
        """Return the quantities that were measured and predicted for a program."""
        return [name for name in QUANTITIES if any(row.error(name) is not None for row in self._rows)]

    def text(self) -> str:
        """Return the table, then a line on the errors of each quantity."""
        heads = [head for name in self._quantities() for head in (f"{QUANTITIES[name]} measured", "predicted", "error")]
        heads += ["limited by", "estimated"] if "step_s" in self._quantities() else []
        columns = [*self._names, *heads]
        lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *map(self._line, self._rows)]
        return "\n".join([*lines, *self.summary()]) + "\n"

    def summary(self) -> list[str]:
        """Return a line on the errors of each quantity: the mean for times, the median for memory, and the worst."""
        lines = []
        for name in self._quantities():
            errors = [abs(error) for row in self._rows if (error := row.error(name)) is not None]
            mean = f"mean {fmean(errors):.2%}, " if name == "step_s" else ""
            found = f"{mean}median {median(errors):.2%}, worst {max(errors):.2%} of {len(errors)} cases"
            lines.append(f"\n{QUANTITIES[name].partition(',')[0]}: {found}")
        return lines


def predicted_quantities(prediction: ScriptPrediction) -> dict[str, Any]:
    """Return the quantities of an ErrorTable that are predicted for the only card of a prediction."""
    time = prediction.cards[0].time
    found: dict[str, Any] = {"peak_gib": prediction.peak_gib, "reserved_gib": prediction.reserved_gib}
    if time:
        found |= {"step_s": time.step_s, "limited_by": time.limited_by, "unmeasured": f"{time.unmeasured_share:.0%}"}
    return found
