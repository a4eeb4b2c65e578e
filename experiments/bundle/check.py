"""Check whether bundles have the requested rows, the lab's settings and consistent values, and are not copies."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.bundle.archive import read_bundle
from experiments.bundle.consistency import prediction_contradictions, result_contradictions, telemetry_contradictions
from experiments.errors import InputError
from experiments.prediction.as_result import evaluate_run
from experiments.report.write import stored_evaluation
from experiments.results.gpu_load import read_samples
from experiments.results.predictions import Prediction
from experiments.results.run_folder import SUITE_FILE, VERDICT_FILE, Run, RunFolder
from experiments.results.schema import ERROR_OUTCOMES, RESULTS_FILE, Result
from experiments.results.verdict_changes import verdict_changes
from experiments.results.verdicts import Evaluation
from experiments.results.wording import OUTCOME_NAMES
from experiments.suites.suite import Suite, suite_named
from provision.files import read_bytes
from provision.temporary import TemporaryFolder


class BundleCheck(NamedTuple):
    """A checked bundle and its problems. run: None if the bundle cannot be read.

    no_point_reasons: for each requested row, the reason why it gives no point; "" if it gives one. measurement_keys:
    for each row, a text that is unique to the row's measurement.
    """

    path: Path
    problems: tuple[str, ...]
    run: Run | None = None
    evaluation: Evaluation | None = None
    no_point_reasons: Mapping[str, str] = {}
    measurement_keys: Mapping[str, str] = {}

    @property
    def is_accepted(self) -> bool:
        """Return whether the bundle has no problem."""
        return not self.problems


def check_bundle(
    path: Path, predictions: Sequence[Prediction] = (), rows: Sequence[str] = (), card: str | None = None
) -> BundleCheck:
    """Check one bundle. A bad bundle raises no error: the returned check lists its problems.

    predictions: trusted predictions of the bundle's rows. rows: requested rows; default: all rows of the run. card:
    requested GPU model; None: any.
    """
    with TemporaryFolder("bundle") as place:
        folder = RunFolder(place)
        try:
            for name, content in read_bundle(path).items():
                (folder.path / name).parent.mkdir(exist_ok=True)
                (folder.path / name).write_bytes(content)
            return _check_files(path, folder, predictions, rows, card)
        except InputError as problem:
            return BundleCheck(path, (str(problem).replace(f"{place}/", ""),))


def _check_files(
    path: Path, folder: RunFolder, predictions: Sequence[Prediction], rows: Sequence[str], card: str | None
) -> BundleCheck:
    run = folder.read_run()
    if (folder.path / SUITE_FILE).is_file():
        (folder.path / SUITE_FILE).unlink()  # the lab's suite applies, not a copy that a student may have edited
    suite = suite_named(run.suite)
    results = folder.results()
    problems = [] if card in (None, run.card) else [f"the run is for {run.card}; requested: {card}"]
    problems += _row_problems(run, suite, results, folder)
    trusted = {one.spec.row: one for one in predictions if (one.spec.suite, one.spec.card) == (run.suite, run.card)}
    for row, result in results.items():
        found = [*_result_problems(run, suite, result, folder), *_prediction_problems(trusted.get(row), run, result)]
        problems += [f"{row}: {problem}" for problem in found]
    problems += _repeated_measurements(folder, results)
    evaluation = evaluate_run(suite, folder).best if not problems else None
    if evaluation and (stored := stored_evaluation(folder.path / VERDICT_FILE)):
        problems += _verdict_problems(stored, evaluation)
    requested_rows = rows or run.rows
    return BundleCheck(
        path,
        tuple(dict.fromkeys(problems)),
        run,
        evaluation,
        {row: _no_point_reason(results.get(row)) for row in requested_rows},
        {row: _measurement_key(result) for row, result in results.items()},
    )


def _row_problems(run: Run, suite: Suite, results: Mapping[str, Result], folder: RunFolder) -> Iterator[str]:
    lines = len(read_bytes(folder.path / RESULTS_FILE).splitlines())
    if lines != len(results):
        yield f"the bundle has {lines} results, but for only {len(results)} rows of the run"
    for row in {*run.rows} - {row.id for row in suite.rows}:
        yield f"{row}: not a row of {suite.suite}"


def _result_problems(run: Run, suite: Suite, result: Result, folder: RunFolder) -> Iterator[str]:
    expected = run.spec(suite, result.spec.row)
    if result.spec.fingerprint != expected.fingerprint:
        names = [name for name, value in expected if value != getattr(result.spec, name)]
        yield f"other settings than the lab's ({', '.join(names)})"
    if result.device.kind == "cuda" and result.device.name not in run.host:
        yield f"ran on {result.device.name}, but the run's machine is {run.host}"
    if result.predicted:
        yield "a prediction, not a measurement"
    yield from result_contradictions(result)
    telemetry = folder.telemetry_file(result.spec.row)
    if telemetry:
        yield from telemetry_contradictions(result, read_samples(telemetry))


def _prediction_problems(prediction: Prediction | None, run: Run, result: Result) -> Iterator[str]:
    if prediction and run.gpus_per_node is None:
        yield from prediction_contradictions(result, prediction)


def _repeated_measurements(folder: RunFolder, results: Mapping[str, Result]) -> Iterator[str]:
    """Yield a problem for each row that has the measurements or the telemetry of another row."""
    seen: dict[str, str] = {}
    for row, result in results.items():
        telemetry = folder.telemetry_file(row)
        telemetry_key = hashlib.sha256(telemetry.read_bytes()).hexdigest() if telemetry else ""
        for key in filter(None, (_measurement_key(result), telemetry_key)):
            if key in seen:
                yield f"{row}: has exactly the same measurements as {seen[key]}"
            seen[key] = row


def _verdict_problems(stored: Evaluation, evaluation: Evaluation) -> Iterator[str]:
    for change in verdict_changes(stored.verdicts, evaluation.verdicts):
        if change.before == "pass" and change.after == "fail":
            yield f"verdict.json states pass for {change.id}, but the results in the bundle give fail"


def _measurement_key(result: Result) -> str:
    """Return a text that is unique to a measurement: its times to the last digit; "" without times."""
    times = (result.gpu_s, result.speed.micro_step_s, result.speed.step_s) if result.speed else (result.gpu_s,)
    return " ".join(map(repr, times)) if any(times) else ""


def _no_point_reason(result: Result | None) -> str:
    if result is None:
        return "no result"
    return (
        f"{OUTCOME_NAMES[result.outcome]}: {result.reason}" if result.outcome in (*ERROR_OUTCOMES, "rejected") else ""
    )


def reject_copies(checked: Sequence[BundleCheck], known: Mapping[str, str]) -> list[BundleCheck]:
    """Return the checks, with one more problem for each row whose measurements another bundle or a known run has, too.

    known: the path of the known run that has a measurement, by the key of the measurement (see
    ``paths_by_measurement_key``).
    """
    owners: dict[str, set[str]] = {}
    for one in checked:
        for key in filter(None, one.measurement_keys.values()):
            owners.setdefault(key, set()).add(str(one.path))
    updated_checks = []
    for one in checked:
        found = []
        for row, key in one.measurement_keys.items():
            others = {known[key]} if key in known else owners.get(key, set()) - {str(one.path)}
            if key and others:
                found.append(f"{row}: copied; exactly the same measurements are in {', '.join(sorted(others))}")
        updated_checks.append(one._replace(problems=(*one.problems, *found)))
    return updated_checks


def paths_by_measurement_key(folders: Sequence[RunFolder]) -> dict[str, str]:
    """Return the path of the run that contains a measurement, by the key of the measurement."""
    keys = {_measurement_key(result): str(folder.path) for folder in folders for result in folder.results().values()}
    return {key: path for key, path in keys.items() if key}
