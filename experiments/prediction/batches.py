"""Search for the largest batch that fits a card, with few predictions."""

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, Protocol, TypeVar

LARGEST_BATCH = 4096
MAX_GROWTH_FACTOR = 8
MAX_INTERPOLATIONS = 8


class HasMargin(Protocol):
    """A prediction of the free memory of one card."""

    @property
    def margin_gib(self) -> float:
        """Return the free memory of the card; negative if memory is missing."""


PredictionT = TypeVar("PredictionT", bound=HasMargin)


class BatchSearch(Generic[PredictionT]):
    """Search over the batch size. The free memory falls approximately linearly with the batch size.

    predictions: the predictions so far, by batch size. The search begins with ``batch``, half of it (if it is not 1)
    and the batch sizes ``known``. It ends at once if a batch of 1 does not fit.
    """

    def __init__(
        self,
        batch: int,
        predict: Callable[[Sequence[int]], Sequence[PredictionT]],
        known: Iterable[int] = (),
    ) -> None:
        self._predict = predict
        first = tuple(dict.fromkeys((batch, batch // 2 or 1, *known)))
        self.predictions = dict(zip(first, predict(first), strict=True))
        self._max_interpolated = max(0, len(first) - 2) + MAX_INTERPOLATIONS

    def predict_batch(self, batch: int) -> PredictionT:
        """Return the prediction of a batch size; predict it if it is new."""
        if batch not in self.predictions:
            (self.predictions[batch],) = self._predict([batch])
        return self.predictions[batch]

    def largest_batch(self, min_free_gib: float) -> int:
        """Return the largest batch that leaves at least ``min_free_gib`` of memory free; 0 if no batch does."""
        while True:
            margins = {batch: prediction.margin_gib - min_free_gib for batch, prediction in self.predictions.items()}
            low = max((batch for batch, margin in margins.items() if margin >= 0), default=0)
            high = min((batch for batch, margin in margins.items() if margin < 0), default=LARGEST_BATCH + 1)
            if high <= low + 1:
                return low
            self.predict_batch(self._next_guess(margins, low, high))

    def _next_guess(self, margins: dict[int, float], low: int, high: int) -> int:
        """Return the next batch to predict, between ``low`` and ``high``.

        margins: free memory minus the required free memory, GiB, by predicted batch. The guess is where a line through
        the two margins nearest to 0 crosses 0; after MAX_INTERPOLATIONS such guesses, it is the middle.
        """
        if len(margins) == 1:
            return low + 1
        by_distance = sorted(margins.items(), key=lambda item: abs(item[1]))
        (closest_batch, margin), (second_batch, second_margin) = by_distance[:2]
        slope = (second_margin - margin) / (second_batch - closest_batch)
        guess = int(closest_batch - margin / slope) if slope < 0 else MAX_GROWTH_FACTOR * max(low, 1)
        if len(margins) > self._max_interpolated:
            guess = (low + high) // 2
        return min(max(guess, low + 1), high - 1, MAX_GROWTH_FACTOR * max(margins))
