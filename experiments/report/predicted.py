"""Compare predictions of a run's rows at full size with the lab's statements and with measurements."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median

from pydantic import Field

from experiments.prediction.as_result import EvaluationsByEvidence, describe_outcome
from experiments.report.words import STATUSES, predicted_headline
from experiments.results.memory_parts import OPTIMIZER_CPU, MemoryPart
from experiments.results.obstacles import fewer_ranks_note
from experiments.results.predictions import Prediction
from experiments.results.schema import Record, Result
from experiments.results.verdicts import Evaluation, Status
from experiments.results.wording import OUTCOME_NAMES
from experiments.suites.suite import Suite


class PredictedRow(Record):
    """One row with its prediction. It also has measurements if it ran at full size, on all ranks, and fit.

    Memory is in GiB on one GPU. Errors are relative to the measured values: predicted / measured - 1.
    """

    stated: str = Field(description="the outcome that the lab states; empty if it states none")
    agrees: bool | None = Field(
        description="whether the predicted outcome is the outcome that the lab states; None: the lab states no outcome"
    )
    words: str = Field(description="the predicted outcome as text")
    prediction: Prediction
    measured_peak_gib: float | None = None
    measured_reserved_gib: float | None = None
    peak_error: float | None = None
    reserved_error: float | None = None
    rule_of_thumb_error: float | None = None

    @property
    def row(self) -> str:
        """Return the row's id."""
        return self.prediction.spec.row

    @property
    def optimizer_cpu_gib(self) -> float:
        """Return the optimizer state in host memory, GiB, rounded to 0.01 GiB; the report leaves out zero."""
        return round(self.prediction.optimizer_cpu_gib, 2)

    def part_gib(self, part: MemoryPart) -> float | None:
        """Return the size of one part of the peak, GiB; None for optimizer state in host memory that rounds to zero."""
        if part == OPTIMIZER_CPU:
            return self.optimizer_cpu_gib or None
        return float(getattr(self.prediction.at_peak, part.field))


class ComparedStatement(Record):
    """One statement with its predicted and its measured status."""

    id: str
    says: str
    rows: tuple[str, ...]
    predicted_status: Status
    predicted_value: str
    measured_status: Status
    measured_value: str
    measured_reason: str


class ErrorSummary(Record):
    """Absolute errors of one kind of prediction, as shares of the measured values."""

    what: str
    rows: int
    median: float
    worst: float


class PredictedReport(Record):
    """The part of a report about predictions."""

    usable_gib: float
    headline: str
    rows: tuple[PredictedRow, ...]
    statements: tuple[ComparedStatement, ...] = Field(description="the statements that predictions can evaluate")
    not_evaluated: int = Field(description="number of statements that predictions cannot evaluate")
    errors: tuple[ErrorSummary, ...] = Field(description="empty if nothing was measured at full size")


def predicted_report(
    suite: Suite, graded: EvaluationsByEvidence, predictions: Sequence[Prediction], results: Mapping[str, Result]
) -> PredictedReport | None:
    """Compare a run's predictions with its verdicts and results; None if nothing was predicted."""
    predicted = graded.predicted
    if predicted is None:
        return None
    rows = tuple(_predicted_row(suite, one, results.get(one.spec.row)) for one in predictions)
    return PredictedReport(
        usable_gib=predictions[0].usable_gib,
        headline=predicted_headline(predicted),
        rows=rows,
        statements=_predicted_statements(predicted, graded.measured),
        not_evaluated=predicted.count("not evaluated"),
        errors=_error_summaries(rows),
    )


def _predicted_row(suite: Suite, prediction: Prediction, result: Result | None) -> PredictedRow:
    expected = suite.row(prediction.spec.row).expect.outcome
    measured_result = result if result and _ran_as_predicted(suite, result) else None
    peak, reserved = (
        (measured_result.memory.peak_gib, measured_result.memory.reserved_gib) if measured_result else (None, None)
    )
    return PredictedRow(
        stated=OUTCOME_NAMES[expected] if expected else "",
        agrees=expected == prediction.likely_outcome if expected else None,
        words=describe_outcome(prediction),
        prediction=prediction,
        measured_peak_gib=peak,
        measured_reserved_gib=reserved,
        peak_error=_relative_error(prediction.peak_gib, peak),
        reserved_error=_relative_error(prediction.limited_reserved_gib, reserved),
        rule_of_thumb_error=_relative_error(prediction.rule_of_thumb_gib, peak),
    )


def _ran_as_predicted(suite: Suite, result: Result) -> bool:
    return result.spec.size == "full" and result.outcome == "fits" and not fewer_ranks_note(suite, result)


def _relative_error(predicted: float, measured: float | None) -> float | None:
    return predicted / measured - 1 if measured else None


def _predicted_statements(predicted: Evaluation, measured: Evaluation) -> tuple[ComparedStatement, ...]:
    """Return the statements that predictions evaluate: predicted failures first, and claims before outcomes."""
    measured_verdicts = {verdict.id: verdict for verdict in measured.verdicts}
    evaluated = [
        verdict
        for verdict in predicted.verdicts
        if verdict.status != "not evaluated" and verdict.id in measured_verdicts
    ]
    return tuple(
        ComparedStatement(
            id=verdict.id,
            says=verdict.says,
            rows=verdict.rows,
            predicted_status=verdict.status,
            predicted_value=verdict.reason or verdict.value,
            measured_status=measured_verdicts[verdict.id].status,
            measured_value=measured_verdicts[verdict.id].value,
            measured_reason=measured_verdicts[verdict.id].reason,
        )
        for verdict in sorted(evaluated, key=lambda verdict: (STATUSES.index(verdict.status), verdict.kind != "claim"))
    )


def _error_summaries(rows: Sequence[PredictedRow]) -> tuple[ErrorSummary, ...]:
    error_of_row: dict[str, Callable[[PredictedRow], float | None]] = {
        "predicted peak": lambda row: row.peak_error,
        "predicted reserved memory": lambda row: row.reserved_error,
        "rule of thumb": lambda row: row.rule_of_thumb_error,
    }
    summaries = []
    for what, read_error in error_of_row.items():
        if errors := [abs(error) for row in rows if (error := read_error(row)) is not None]:
            summaries.append(ErrorSummary(what=what, rows=len(errors), median=median(errors), worst=max(errors)))
    return tuple(summaries)
