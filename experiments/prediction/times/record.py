"""Record the operations of each phase of a traced training."""

from collections.abc import Iterable
from typing import Any

from experiments.prediction.phantom.library import Phantom
from experiments.prediction.times.step import Work
from experiments.results.schema import Phase


class WorkRecorder:
    """The phases of a training on the phantom device, with the operations of each, and the tokens of its batch."""

    def __init__(self, phantom: Phantom) -> None:
        self._phantom = phantom
        self._begun: list[tuple[int, Phase]] = []
        self._tokens: list[int] = []

    def begin_phase(self, phase: Phase) -> None:
        """Begin a phase with the next operation."""
        self._begun.append((self._phantom.executed(), phase))
        self._tokens.append(self._tokens[-1] if self._tokens else 0)

    def see_batch(self, tensors: Iterable[Any]) -> None:
        """Take the tokens of the batch of this phase: the length of its longest text."""
        lengths = [tensor.shape[1] for tensor in tensors if tensor.dim() == 2]
        self._tokens[-1] = max(lengths, default=0)

    def works(self) -> list[Work]:
        """Return the phases so far."""
        ends = [*(begun for begun, _ in self._begun[1:]), self._phantom.executed()]
        return [
            Work(phase, tokens, self._phantom.operations(begun, end))
            for (begun, phase), tokens, end in zip(self._begun, self._tokens, ends, strict=True)
        ]
