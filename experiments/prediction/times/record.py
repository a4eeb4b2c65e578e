"""Record the operations of each phase of a traced training, or of one step of a traced program."""

import functools
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from experiments.prediction.phantom.library import Phantom
from experiments.prediction.times.operations import parse
from experiments.prediction.times.phase import RecordedPhase
from experiments.results.schema import Phase


class PhaseRecorder:
    """Records each phase of a training on the phantom device: its operations and the tokens of its batch."""

    def __init__(self, phantom: Phantom) -> None:
        self._phantom = phantom
        self._starts: list[tuple[int, Phase]] = []
        self._tokens: list[int] = []
        self._end: int | None = None

    def begin_phase(self, phase: Phase) -> None:
        """Record the operations from now on as those of ``phase``."""
        self._starts.append((self._phantom.operation_count(), phase))
        self._tokens.append(self._tokens[-1] if self._tokens else 0)

    def record_batch(self, tensors: Iterable[Any]) -> None:
        """Record the length of the longest text in this phase's batch, in tokens."""
        lengths = [tensor.shape[1] for tensor in tensors if tensor.dim() == 2]
        self._tokens[-1] = max(lengths, default=0)

    def end(self) -> None:
        """End the last phase: later operations are not recorded."""
        self._end = self._phantom.operation_count()

    def recorded_phases(self, first: int = 0, stop: int | None = None) -> list[RecordedPhase]:
        """Return the phases that were recorded until now: from number ``first`` to before ``stop``."""
        end_of_last = self._phantom.operation_count() if self._end is None else self._end
        ends = [*(start for start, _ in self._starts[1:]), end_of_last]
        return [
            part
            for (start, phase), tokens, end in [*zip(self._starts, self._tokens, ends, strict=True)][first:stop]
            for part in self._parts(phase, tokens, start, end)
        ]

    def _parts(self, phase: Phase, tokens: int, start: int, end: int) -> Iterator[RecordedPhase]:
        """Yield the parts of a phase. Each part but the last ends with a wait of the host or a collective operation."""
        keys, repeats = self._phantom.keys(start, end)
        ends = [place for place, key in enumerate(keys[:-1], start=1) if ends_part(key)]
        for begin, stop in itertools.pairwise([0, *ends, len(keys)]):
            part = keys[begin:stop]
            repeated = Counter(itertools.compress(part, repeats[begin:stop]))
            operations = Counter(part)
            places = {key: place for place, key in enumerate(operations)}
            sequence = tuple(places[key] for key in part)
            yield RecordedPhase(phase, tokens, operations, repeated, start + stop, sequence, tuple(repeats[begin:stop]))


@functools.cache
def ends_part(key: str) -> bool:
    """Return whether an operation ends a part of a phase: the host waits for the GPU, or GPUs exchange data."""
    operation = parse(key)
    return operation.host_waits or operation.family == "communication"


class StepRecorder(PhaseRecorder):
    """Records the phases of any program, and where the steps of its optimizers end."""

    def __init__(self, phantom: Phantom) -> None:
        super().__init__(phantom)
        self._ends: list[tuple[int, int]] = []

    def begin_phase(self, phase: Phase) -> None:
        """Record the operations from now on as those of ``phase``, which may have begun before."""
        if not self._starts or self._starts[-1][1] != phase:
            super().begin_phase(phase)

    def end_step(self, optimizer: int, phase: Phase) -> None:
        """Record that the optimizer with the id ``optimizer`` has ended a step. phase: that of the next operations."""
        self._ends.append((optimizer, len(self._starts)))
        super().begin_phase(phase)

    def last_step(self) -> list[RecordedPhase]:
        """Return the phases of the last step that is not the first one of its optimizer; [] if there is none.

        A step begins where the previous step of the same optimizer ends. So it contains the steps of other optimizers.
        """
        for number, (optimizer, end) in reversed([*enumerate(self._ends)]):
            previous_ends = [previous_end for other, previous_end in self._ends[:number] if other == optimizer]
            if previous_ends:
                return self.recorded_phases(previous_ends[-1], end)
        return []
