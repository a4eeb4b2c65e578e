"""The check of bundles: right rows, right settings, figures that agree, not copied. A refusal has its reasons."""

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.bundle.archive import read_bundle
from experiments.bundle.consistency import contradictions, prediction_contradictions, telemetry_contradictions
from experiments.errors import InputError
from experiments.prediction.as_result import evaluate_run
from experiments.report.write import stored_evaluation
from experiments.results.load import read_samples
from experiments.results.predictions import Prediction
from experiments.results.run_folder import SUITE_FILE, VERDICT_FILE, Run, RunFolder
from experiments.results.schema import ERROR_OUTCOMES, RESULTS_FILE, Result
from experiments.results.verdict_changes import verdict_changes
from experiments.results.verdicts import Evaluation
from experiments.suites.suite import Suite, suite_named


class Checked(NamedTuple):
    """A bundle and what is wrong with it; accepted if there is nothing. run: None if it cannot be read.

    rows: why a requested row gives no point, empty if it does. marks: what tells a measurement from any other, by row.
    """

    path: Path
    problems: tuple[str, ...]
    run: Run | None = None
    evaluation: Evaluation | None = None
    rows: Mapping[str, str] = {}
    marks: Mapping[str, str] = {}

    @property
    def accepted(self) -> bool:
        """Return whether nothing is wrong with the bundle."""
        return not self.problems


def check_bundle(
    path: Path, predictions: Sequence[Prediction] = (), rows: Sequence[str] = (), card: str | None = None
) -> Checked:
    """Check one bundle. predictions: trusted ones of its rows. rows: requested; default: those of its run.

    card: requested GPU model. Raises nothing for a bad bundle: the reasons are in the answer.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder(Path(place))
        try:
            for name, content in read_bundle(path).items():
                (folder.path / name).parent.mkdir(exist_ok=True)
                (folder.path / name).write_bytes(content)
            return _checked(path, folder, predictions, rows, card)
        except InputError as problem:
            return Checked(path, (str(problem).replace(f"{place}/", ""),))


def _checked(
    path: Path, folder: RunFolder, predictions: Sequence[Prediction], rows: Sequence[str], card: str | None
) -> Checked:
    run = folder.read_run()
    if (folder.path / SUITE_FILE).is_file():
        (folder.path / SUITE_FILE).unlink()  # a student's own copy of a suite states nothing
    suite = suite_named(run.suite)
    results = folder.results()
    problems = [] if card in (None, run.card) else [f"the run is of {run.card}, requested: {card}"]
    problems += _of_rows(run, suite, results, folder)
    trusted = {one.spec.row: one for one in predictions if (one.spec.suite, one.spec.card) == (run.suite, run.card)}
    for row, result in results.items():
        found = [*_of_result(run, suite, result, folder), *_against(trusted.get(row), run, result)]
        problems += [f"{row}: {problem}" for problem in found]
    problems += _replayed(folder, results)
    evaluation = evaluate_run(suite, folder).best if not problems else None
    if evaluation and (stored := stored_evaluation(folder.path / VERDICT_FILE)):
        problems += _of_verdicts(stored, evaluation)
    asked = rows or run.rows
    return Checked(
        path,
        tuple(dict.fromkeys(problems)),
        run,
        evaluation,
        {row: _missing(results.get(row)) for row in asked},
        {row: _mark(result) for row, result in results.items()},
    )


def _of_rows(run: Run, suite: Suite, results: Mapping[str, Result], folder: RunFolder) -> Iterator[str]:
    lines = len((folder.path / RESULTS_FILE).read_bytes().splitlines())
    if lines != len(results):
        yield f"{lines} results of {len(results)} of the run's rows"
    for row in {*run.rows} - {row.id for row in suite.rows}:
        yield f"{row}: not a row of {suite.suite}"


def _of_result(run: Run, suite: Suite, result: Result, folder: RunFolder) -> Iterator[str]:
    expected = run.spec(suite, result.spec.row)
    if result.spec != expected:
        names = [name for name, value in expected if value != getattr(result.spec, name)]
        yield f"other settings than the lab's ({', '.join(names)})"
    if result.device.kind == "cuda" and result.device.name not in run.host:
        yield f"ran on {result.device.name}, but the run's machine is {run.host}"
    if result.predicted:
        yield "a prediction, not a measurement"
    yield from contradictions(result)
    telemetry = folder.telemetry(result.spec.row)
    if telemetry:
        yield from telemetry_contradictions(result, read_samples(telemetry))


def _against(prediction: Prediction | None, run: Run, result: Result) -> Iterator[str]:
    if prediction and run.gpus_per_node is None:
        yield from prediction_contradictions(result, prediction)


def _replayed(folder: RunFolder, results: Mapping[str, Result]) -> Iterator[str]:
    """Yield rows that share their measurements or their telemetry with another row."""
    seen: dict[str, str] = {}
    for row, result in results.items():
        telemetry = folder.telemetry(row)
        text = hashlib.sha256(telemetry.read_bytes()).hexdigest() if telemetry else ""
        for mark in filter(None, (_mark(result), text)):
            if mark in seen:
                yield f"{row}: measured as {seen[mark]}, value for value"
            seen[mark] = row


def _of_verdicts(stored: Evaluation, evaluation: Evaluation) -> Iterator[str]:
    for change in verdict_changes(stored.verdicts, evaluation.verdicts):
        if change.a == "pass" and change.b == "fail":
            yield f"verdict.json states pass for {change.id}, the results give fail"


def _mark(result: Result) -> str:
    """Return what two runs never share: the times of a row, to the last digit; empty without any."""
    times = (result.gpu_s, result.speed.micro_step_s, result.speed.step_s) if result.speed else (result.gpu_s,)
    return " ".join(map(repr, times)) if any(times) else ""


def _missing(result: Result | None) -> str:
    if result is None:
        return "no result"
    return f"{result.outcome}: {result.reason}" if result.outcome in (*ERROR_OUTCOMES, "refused") else ""


def copies(checked: Sequence[Checked], known: Mapping[str, str]) -> list[Checked]:
    """Return the bundles, those refused that have a row's measurements from another one, or from a ``known`` run.

    known: the name of each run by the mark of its rows; see marks_of.
    """
    owners: dict[str, set[str]] = {}
    for one in checked:
        for mark in filter(None, one.marks.values()):
            owners.setdefault(mark, set()).add(str(one.path))
    answer = []
    for one in checked:
        found = []
        for row, mark in one.marks.items():
            others = {known[mark]} if mark in known else owners.get(mark, set()) - {str(one.path)}
            if mark and others:
                found.append(f"{row}: copied, value for value as in {', '.join(sorted(others))}")
        answer.append(one._replace(problems=(*one.problems, *found)))
    return answer


def marks_of(folders: Sequence[RunFolder]) -> dict[str, str]:
    """Return the name of the run that each measurement is from, by its mark."""
    marks = {_mark(result): str(folder.path) for folder in folders for result in folder.results().values()}
    return {mark: path for mark, path in marks.items() if mark}
