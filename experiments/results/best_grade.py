"""Combine measurements and predictions: the best evidence for each statement, and contradictions. Pure functions."""

from experiments.results.verdicts import GRADES, Contradiction, Evaluation, Verdict


def combine_evidence(measured: Evaluation, predicted: Evaluation) -> Evaluation:
    """Return the measured evaluation with each statement's best verdict, and the predictions that contradict it.

    A prediction replaces a missing measurement. It also replaces a measurement on a tiny model. An error stays an
    error. If neither gives a verdict, the reason is the measurement's, or the prediction's if nothing was measured.
    """
    predictions = {verdict.id: verdict for verdict in predicted.verdicts}
    pairs = [(verdict, predictions.get(verdict.id)) for verdict in measured.verdicts]
    verdicts = tuple(_better_verdict(verdict, prediction) for verdict, prediction in pairs)
    contradictions = tuple(
        Contradiction(id=verdict.id, says=verdict.says, measured=verdict, predicted=prediction)
        for verdict, prediction in pairs
        if prediction and prediction.grade and verdict.grade and verdict.status != prediction.status
    )
    return measured.model_copy(update={"verdicts": verdicts, "contradictions": contradictions})


def _better_verdict(measured: Verdict, predicted: Verdict | None) -> Verdict:
    if predicted is None or measured.status == "error":
        return measured
    if predicted.grade is None:
        return measured if measured.value else predicted
    if measured.grade is None or GRADES.index(predicted.grade) < GRADES.index(measured.grade):
        return predicted
    return measured
