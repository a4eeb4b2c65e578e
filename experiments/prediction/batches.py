"""Search for the largest batch that fits a card, with few predictions."""

from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

LARGEST_BATCH = 4096
GROWTH = 8
CHORDS = 8


class HasMargin(Protocol):
    """A prediction for one card."""

    @property
    def margin_gib(self) -> float:
        """Return the memory of the card that stays free; negative if memory is missing."""


P = TypeVar("P", bound=HasMargin)


class Batches(Generic[P]):
    """Search over the batch size. The margin falls approximately linearly with the batch size.

    known: the predictions so far, by batch.
    """

    def __init__(self, batch: int, predict: Callable[[Sequence[int]], Sequence[P]]) -> None:
        self._predict = predict
        first = (batch, batch // 2 or 2)
        self.known = dict(zip(first, predict(first), strict=True))

    def prediction(self, batch: int) -> P:
        """Return the prediction of a batch, which is made if it is new."""
        if batch not in self.known:
            (self.known[batch],) = self._predict([batch])
        return self.known[batch]

    def last(self, least_gib: float) -> int:
        """Return the largest batch that leaves at least ``least_gib`` of the card free; 0 if none does."""
        while True:
            margins = {batch: one.margin_gib - least_gib for batch, one in self.known.items()}
            low = max((batch for batch, margin in margins.items() if margin >= 0), default=0)
            high = min((batch for batch, margin in margins.items() if margin < 0), default=LARGEST_BATCH + 1)
            if high <= low + 1:
                return low
            self.prediction(self._between(margins, low, high))

    def _between(self, margins: dict[int, float], low: int, high: int) -> int:
        """Return the zero of a line through the two margins nearest to 0, limited to ``low`` and ``high``."""
        (near, margin), (far, other) = sorted(margins.items(), key=lambda item: abs(item[1]))[:2]
        slope = (other - margin) / (far - near)
        guess = int(near - margin / slope) if slope < 0 else GROWTH * max(low, 1)
        if len(margins) > CHORDS:
            guess = (low + high) // 2
        return min(max(guess, low + 1), high - 1, GROWTH * max(margins))
