"""Predict the rows of suites, with the cache and with progress in plain lines."""

import time
from collections.abc import Callable, Sequence

from experiments.errors import InputError, unknown_name
from experiments.prediction.as_result import warning
from experiments.prediction.predict import Failed, place_of, predict, traced_spec
from experiments.prediction.tables import beside_stated, prediction_tables
from experiments.results.predictions import Prediction
from experiments.results.run_folder import Run, RunFolder
from experiments.results.wording import format_duration
from experiments.runners.progress import View
from experiments.suites.cards import card_named
from experiments.suites.row_spec import RowSpec
from experiments.suites.suite import Suite, cards_of_suites, suite_named, suite_names
from experiments.system.files import cache_folder
from experiments.system.packages import require

Say = Callable[[str], None]


def rows_asked(target: str | None, card: str | None) -> list[RowSpec]:
    """Return the rows of 'SUITE', 'SUITE/ROW' or all suites, on ``card`` or on every card of each row.

    Raises InputError for an unknown suite, row or card.
    """
    if card is not None:
        card_named(card, "--card")
    if target is None:
        found = [spec for name in suite_names() for spec in _on_cards(suite_named(name), card, None)]
        if not found:
            raise unknown_name("card of a suite", card, cards_of_suites(), "--card")
        return found
    name, _, row = target.partition("/")
    suite = suite_named(name)
    if card is not None:
        suite.rows_for(card)
    specs = _on_cards(suite, card, suite.row(row).id if row else None)
    if not specs and card is not None:
        raise unknown_name("row", row, (one.id for one in suite.rows_for(card)), f"suite {name} on {card}")
    return specs


def traced(specs: Sequence[RowSpec], say: Say, failed: Failed | None = None) -> list[Prediction]:
    """Return the predictions of ``specs``; report each traced row, the progress and the remaining time to ``say``.

    ``failed`` is called for rows that cannot be traced. Raises what ``predict`` raises.
    """
    require("torch")
    return predict(specs, cache_folder(), Progress(len({spec.fingerprint for spec in specs}), say), failed)


def predict_rows(suite: Suite, run: Run, folder: RunFolder, view: View) -> None:
    """Predict the rows of ``run`` at full size, store the predictions in ``folder``, warn if a stated outcome differs.

    Rows that cannot be predicted are reported; they do not stop the run.
    """
    specs = [traced_spec(suite, suite.row(row), run.card, run.input) for row in run.rows]
    view.says(f"predicting {len(specs)} row(s) at full size on {run.card}; cached predictions are reused")
    try:
        predictions = traced(specs, view.says, lambda spec, why: view.says(f"not predicted: {why}"))
    except (InputError, RuntimeError) as problem:
        view.says(f"not predicted: {problem}")
        return
    if predictions:
        folder.write_predictions(predictions)
    if predictions and run.size == "tiny":
        view.predicts(prediction_tables(predictions), {one.spec.row: beside_stated(one) for one in predictions})
    for prediction in predictions:
        if line := warning(prediction, suite.row(prediction.spec.row).expect.outcome):
            view.warns(line)


class Progress:
    """Reports one line for each traced row, and nothing for cached rows."""

    def __init__(self, total: int, say: Say) -> None:
        self._total, self._say = total, say
        self._done = self._traced = 0
        self._begun = time.monotonic()

    def __call__(self, spec: RowSpec, prediction: Prediction, cached: bool) -> None:
        self._done += 1
        if cached:
            return
        self._traced += 1
        each_s = (time.monotonic() - self._begun) / self._traced
        left = (
            f", about {format_duration(max(1.0, each_s * (self._total - self._done)))} left"
            if self._done < self._total
            else ""
        )
        found = f"{prediction.predicted_outcome}, peak {prediction.peak_gib:.2f} GiB"
        what = f"{place_of(spec)}, batch {spec.settings.batch_size}, on {spec.card}"
        self._say(f"predicted {what}: {found} ({self._done} of {self._total}{left})")


def reject_if_parameters_exceed(prediction: Prediction) -> None:
    """Raise InputError if the parameters alone exceed the card's capacity."""
    parameters = prediction.memory.snapshots[0].params_gib
    if parameters > prediction.usable_gib:
        raise InputError(
            f"--card {prediction.spec.card}: the parameters of {prediction.spec.row} alone take {parameters:.2f} GiB,"
            f" the card has {prediction.usable_gib:.2f} GiB usable"
        )


def _on_cards(suite: Suite, card: str | None, row_id: str | None) -> list[RowSpec]:
    return [
        traced_spec(suite, row, own)
        for own in suite.cards
        if card in (None, own)
        for row in suite.rows_for(own)
        if row_id in (None, row.id)
    ]
