"""Convert predictions into results, so that the lab's statements can be evaluated from predictions too."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, get_args

from experiments.results.best_grade import combine_evidence
from experiments.results.evaluate import evaluate
from experiments.results.gpu_load import OTHER_UTILIZATION, PROCESSES, STEADY_UTILIZATION
from experiments.results.predictions import Prediction
from experiments.results.provenance import code_sha256
from experiments.results.run_folder import Run, RunFolder
from experiments.results.schema import Device, Result, Speed
from experiments.results.verdicts import Evaluation
from experiments.results.wording import OUTCOME_NAMES
from experiments.suites.cards import card_named
from experiments.suites.choices import Length
from experiments.suites.suite import ExpectedOutcome, Suite


class EvaluationsByEvidence(NamedTuple):
    """Evaluations of a run: of its results, of its predictions (None if there are none), and the best of both."""

    measured: Evaluation
    predicted: Evaluation | None
    best: Evaluation


def evaluate_run(suite: Suite, folder: RunFolder) -> EvaluationsByEvidence:
    """Evaluate the stored results and predictions of a run of ``suite``.

    Raises InputError if ``folder`` is not the folder of a run, if one of its rows is unknown, or if a result or the
    predictions cannot be read.
    """
    return _evaluate_all(suite, folder.read_run(), folder.results(), folder.predictions())


def evaluate_together(suite: Suite, folders: Sequence[RunFolder]) -> EvaluationsByEvidence:
    """Evaluate several runs of ``suite`` on one card as one run that has the rows of all.

    If several runs have the same row, the result of the longest training is used, because it has all values of the
    shorter trainings, and the losses of a full training. Of equally long trainings, that of the first run is used.
    Raises InputError as ``evaluate_run`` does.
    """
    results: dict[str, Result] = {}
    predictions: dict[str, Prediction] = {}
    lengths = get_args(Length)
    runs = sorted(((folder.read_run(), folder) for folder in folders), key=lambda pair: lengths.index(pair[0].length))
    for _, folder in reversed(runs):
        results |= folder.results()
        predictions |= {prediction.spec.row: prediction for prediction in folder.predictions()}
    requested = {row for run, _ in runs for row in run.rows}
    rows = tuple(row.id for row in suite.rows if row.id in requested)
    return _evaluate_all(suite, runs[0][0].model_copy(update={"rows": rows}), results, tuple(predictions.values()))


def _evaluate_all(
    suite: Suite, run: Run, results: dict[str, Result], predictions: tuple[Prediction, ...]
) -> EvaluationsByEvidence:
    measured = evaluate(suite, run, results)
    if not predictions:
        return EvaluationsByEvidence(measured, None, measured)
    predicted = predicted_evaluation(suite, run, predictions)
    return EvaluationsByEvidence(measured, predicted, combine_evidence(measured, predicted))


def predicted_evaluation(suite: Suite, run: Run, predictions: Iterable[Prediction]) -> Evaluation:
    """Evaluate the statements of ``suite`` about the rows of ``run`` at full size, from predictions only."""
    results = {prediction.spec.row: convert_to_result(prediction) for prediction in predictions}
    return evaluate(suite, run.model_copy(update={"size": "full"}), results)


def convert_to_result(prediction: Prediction) -> Result:
    """Return the predicted result of the row on its card: memory, outcome, times and load of the GPUs, without losses.

    Reserved memory, outcome and failure are predicted for the card's capacity. All other sizes of memory are predicted
    for unlimited capacity, also for a row that does not fit.
    """
    spec, card = prediction.spec, card_named(prediction.spec.card)
    return Result(
        predicted=True,
        spec=spec,
        fingerprint=spec.fingerprint,
        code=code_sha256(),
        outcome=prediction.likely_outcome,
        reason=describe_outcome(prediction),
        failure=prediction.failure,
        device=Device(
            kind="cuda" if spec.settings.gpus else "cpu",
            name=f"{card.name if spec.settings.gpus else 'CPU'}, predicted",
            count=spec.settings.devices,
            memory_gib=card.memory_gib if spec.settings.gpus else None,
            card=spec.card if spec.settings.gpus else None,
            host_cpus=0,
            host_memory_gib=0.0,
        ),
        memory=prediction.memory.model_copy(update={"reserved_gib": prediction.limited_reserved_gib}),
        parameters=prediction.parameters,
        trainable_parameters=prediction.trainable_parameters,
        speed=_speed(prediction),
        telemetry=_telemetry(prediction),
        versions=prediction.versions,
    )


def _speed(prediction: Prediction) -> Speed | None:
    """Return the predicted speed of one optimizer step; None if its time is not predicted."""
    time, settings = prediction.time, prediction.spec.settings
    if time is None or prediction.likely_outcome != "fits":
        return None
    return Speed(
        optimizer_steps=1,
        micro_steps=settings.accumulate,
        planned_micro_steps=time.planned_micro_steps,
        measured_micro_steps=0,
        micro_step_s=time.step_s / settings.accumulate,
        step_s=time.step_s,
        spread=0.0,
        samples_per_s=settings.global_batch_size / time.step_s,
        tflop_per_sample=prediction.tflop_per_sample,
        train_s=time.step_s,
        gpu_idle_share=1 - time.gpu_busy_share,
        error_share=time.error_share,
        ratio_error_share=time.ratio_error_share,
        idle_error=time.gpu_busy_share_error,
    )


def _telemetry(prediction: Prediction) -> dict[str, float]:
    """Return the predicted telemetry: one process on each GPU of the row, and the utilization of these GPUs in percent.

    The utilization of other GPUs is 0.
    """
    time = prediction.time
    if time is None or prediction.likely_outcome != "fits":
        return {}
    processes = prediction.spec.settings.world_size
    return {
        f"{PROCESSES}_max": processes,
        STEADY_UTILIZATION: 100 * time.gpu_busy_share,
        f"{OTHER_UTILIZATION}_max": 0.0,
    }


def describe_outcome(prediction: Prediction) -> str:
    """Describe the predicted outcome, such as 'borderline, more likely fits: needs 77.90 GiB of 78.60 GiB usable'."""
    if not prediction.spec.settings.gpus:
        return f"{OUTCOME_NAMES['fits']}: needs no GPU, and {prediction.host_gib:.2f} GiB of host memory for tensors"
    doubt = "borderline, more likely " if prediction.predicted_outcome == "borderline" else ""
    needs = f"needs {prediction.needed_gib:.2f} GiB of {prediction.usable_gib:.2f} GiB usable"
    return f"{doubt}{OUTCOME_NAMES[prediction.likely_outcome]}: {needs}"


def mismatch_warning(prediction: Prediction, expected: ExpectedOutcome | None) -> str:
    """Return a warning of one line if the prediction differs from the lab's expected outcome; otherwise ''."""
    if expected is None or expected == prediction.likely_outcome:
        return ""
    return (
        f"{prediction.spec.row}: the lab states: {OUTCOME_NAMES[expected]}; predicted: {describe_outcome(prediction)}"
    )
