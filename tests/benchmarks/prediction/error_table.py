"""A table of measurements, predictions and errors of programs: of memory, and of the time of a step."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.prediction.script.record import ScriptPrediction

QUANTITIES = {"peak_gib": "peak", "reserved_gib": "reserved", "step_s": "step, s:"}


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
        return predicted / measured - 1 if measured and predicted else None


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
            mean = f"mean {statistics.fmean(errors):.2%}, " if name == "step_s" else ""
            found = f"{mean}median {statistics.median(errors):.2%}, worst {max(errors):.2%} of {len(errors)} cases"
            lines.append(f"\n{QUANTITIES[name].partition(',')[0]}: {found}")
        return lines


def predicted_quantities(prediction: ScriptPrediction) -> dict[str, Any]:
    """Return the quantities of an ErrorTable that are predicted for the only card of a prediction."""
    time = prediction.cards[0].time
    found: dict[str, Any] = {"peak_gib": prediction.peak_gib, "reserved_gib": prediction.reserved_gib}
    if time:
        found |= {"step_s": time.step_s, "limited_by": time.limited_by, "unmeasured": f"{time.unmeasured_share:.0%}"}
    return found
