"""Record the operations of each phase of a traced training."""

from collections.abc import Iterable
from typing import Any

from experiments.prediction.phantom.library import Phantom
from experiments.prediction.times.step import RecordedPhase
from experiments.results.schema import Phase


class PhaseRecorder:
    """Records each phase of a training on the phantom device: its operations and the tokens of its batch."""

    def __init__(self, phantom: Phantom) -> None:
        self._phantom = phantom
        self._starts: list[tuple[int, Phase]] = []
        self._tokens: list[int] = []

    def begin_phase(self, phase: Phase) -> None:
        """Record the operations from now on as those of ``phase``."""
        self._starts.append((self._phantom.executed(), phase))
        self._tokens.append(self._tokens[-1] if self._tokens else 0)

    def record_batch(self, tensors: Iterable[Any]) -> None:
        """Record the length of the longest text in this phase's batch, in tokens."""
        lengths = [tensor.shape[1] for tensor in tensors if tensor.dim() == 2]
        self._tokens[-1] = max(lengths, default=0)

    def recorded_phases(self) -> list[RecordedPhase]:
        """Return the phases that were recorded until now."""
        ends = [*(start for start, _ in self._starts[1:]), self._phantom.executed()]
        return [
            RecordedPhase(
                phase,
                tokens,
                self._phantom.operations(start, end),
                self._phantom.operations(start, end, recomputed=True),
            )
            for (start, phase), tokens, end in zip(self._starts, self._tokens, ends, strict=True)
        ]
