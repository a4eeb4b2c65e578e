"""Predict rows with the program's cache, and report the progress as lines of text."""

import time
from collections.abc import Callable, Sequence

from experiments.errors import InputError, unknown_name_error
from experiments.prediction.as_result import mismatch_warning
from experiments.prediction.predict import OnFailure, predict, row_label, suite_row_spec
from experiments.prediction.tables import compare_with_lab, prediction_tables
from experiments.results.predictions import Prediction
from experiments.results.run_folder import Run, RunFolder
from experiments.results.wording import format_duration
from experiments.runners.progress import View
from experiments.suites.cards import card_named
from experiments.suites.row_spec import RowSpec
from experiments.suites.suite import Suite, cards_of_suites, suite_named, suite_names
from experiments.system.files import cache_folder
from experiments.system.packages import require_packages
from provision.words import number_with_noun

PrintLine = Callable[[str], None]


def select_rows(target: str | None, card: str | None) -> list[RowSpec]:
    """Return the rows of ``target`` (SUITE or SUITE/ROW; None: all suites) on ``card`` (None: each card of a suite).

    Raises InputError for an unknown suite, row or card.
    """
    if card is not None:
        card_named(card, "--card")
    if target is None:
        specs = [spec for name in suite_names() for spec in _specs_by_card(suite_named(name), card, None)]
        if not specs:
            raise unknown_name_error("card of a suite", card, cards_of_suites(), "--card")
        return specs
    name, _, row = target.partition("/")
    suite = suite_named(name)
    if card is not None:
        suite.rows_for(card)
    specs = _specs_by_card(suite, card, suite.row(row).id if row else None)
    if not specs and card is not None:
        raise unknown_name_error("row", row, (one.id for one in suite.rows_for(card)), f"suite {name} on {card}")
    return specs


def trace_rows(
    specs: Sequence[RowSpec], print_line: PrintLine, on_failure: OnFailure | None = None, rank: int = 0
) -> list[Prediction]:
    """Return the predictions of ``specs``; print each traced row and the remaining time with ``print_line``.

    ``on_failure`` is called for rows that cannot be traced. ``rank``: number of the rank to trace, from 0. Raises the
    errors of ``predict``.
    """
    require_packages("torch")
    progress = TraceProgress(len({spec.fingerprint for spec in specs}), print_line)
    return predict(specs, cache_folder(), progress, on_failure, rank=rank)


def trace_all_ranks(
    specs: Sequence[RowSpec], print_line: PrintLine, on_failure: OnFailure | None = None
) -> list[Prediction]:
    """Return the predictions of all ranks of the first row, then of the next; parameters: see ``trace_rows``.

    Each rank is traced alone, so values in host memory that a rank receives from other ranks are unknown, or zero.
    """
    predictions: list[Prediction] = []
    for rank in range(max((spec.settings.ranks for spec in specs), default=0)):
        with_rank = [spec for spec in specs if rank < spec.settings.ranks]
        predictions += trace_rows(with_rank, print_line, on_failure, rank)
    places = {spec.fingerprint: place for place, spec in enumerate(specs)}
    return sorted(predictions, key=lambda one: (places[one.spec.fingerprint], one.rank))


def predict_rows(suite: Suite, run: Run, folder: RunFolder, view: View) -> None:
    """Predict the rows of ``run`` at full size, and store the predictions in ``folder``.

    Prints a warning for each row whose predicted outcome differs from the outcome that the lab states. Rows that cannot
    be predicted are reported; they do not stop the run.
    """
    specs = [suite_row_spec(suite, suite.row(row), run.card, run.input) for row in run.rows]
    view.print_line(
        f"predicting {number_with_noun(len(specs), 'row')} at full size on {run.card}; cached predictions are reused"
    )
    try:
        predictions = trace_rows(
            specs, view.print_line, lambda spec, problem: view.print_line(f"not predicted: {problem}")
        )
    except (InputError, RuntimeError) as problem:
        view.print_line(f"not predicted: {problem}")
        return
    if predictions:
        folder.write_predictions(predictions)
    if predictions and run.size == "tiny":
        view.show_predictions(
            prediction_tables(predictions), {one.spec.row: compare_with_lab(one) for one in predictions}
        )
    for prediction in predictions:
        if line := mismatch_warning(prediction, suite.row(prediction.spec.row).expect.outcome):
            view.print_warning(line)


class TraceProgress:
    """Callback that prints one line for each traced row, and nothing for cached rows."""

    def __init__(self, total: int, print_line: PrintLine) -> None:
        self._total, self._print_line = total, print_line
        self._done_count = self._traced_count = 0
        self._started = time.monotonic()

    def __call__(self, spec: RowSpec, prediction: Prediction, cached: bool) -> None:
        self._done_count += 1
        if cached:
            return
        self._traced_count += 1
        each_s = (time.monotonic() - self._started) / self._traced_count
        left = (
            f", about {format_duration(max(1.0, each_s * (self._total - self._done_count)))} left"
            if self._done_count < self._total
            else ""
        )
        outcome = f"{prediction.predicted_outcome}, peak {prediction.peak_gib:.2f} GiB"
        rank = f", rank {prediction.rank}" if prediction.rank else ""
        what = f"{row_label(spec)}{rank}, batch {spec.settings.batch_size}, on {spec.card}"
        self._print_line(f"predicted {what}: {outcome} ({self._done_count} of {self._total}{left})")


def _specs_by_card(suite: Suite, card: str | None, row_id: str | None) -> list[RowSpec]:
    return [
        suite_row_spec(suite, row, name)
        for name in (suite.cards if card is None else suite.all_cards)
        if card in (None, name)
        for row in suite.rows_for(name)
        if row_id in (None, row.id)
    ]
