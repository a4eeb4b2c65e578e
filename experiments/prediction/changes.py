"""Rule out changes that cannot make a training fit: if it does not fit with all of them, it does not fit with one.

Each change saves memory or leaves the memory as it is. So if a training does not fit with several changes, it does not
fit with some of them either. 4-bit weights are an exception: the weights that are not quantized, such as those of the
embedding, become 32-bit numbers (peft, prepare_model_for_kbit_training). So a combination that contains 4-bit weights
rules out only combinations that also contain them. The changes of rows have other exceptions (MAY_COST in fit.py).
"""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

TrainingT = TypeVar("TrainingT")
SEPARATOR = "; "
"""Separator of the names of changes that are combined."""
QUANTIZATION = "4-bit weights"
"""Beginning of the names of the changes that can also increase the memory."""
GPU_COUNT = re.compile(r"\d+(?= GPUs)")


class Combination(NamedTuple, Generic[TrainingT]):
    """A training with several changes, and their names in the order in which they were made."""

    names: tuple[str, ...]
    training: TrainingT

    @property
    def name(self) -> str:
        """Return the names in one string, with SEPARATOR between them."""
        return SEPARATOR.join(self.names)


class RuledOut(Generic[TrainingT]):
    """The combinations of changes that do not fit a card.

    training: the training that is changed. changes_of: returns the single changes of a training by name, cheapest
    first. may_fit: returns whether a combination fits, or may fit. already_made: names of changes that ``training``
    already has. may_cost: beginnings of the names of changes that can also increase the memory: a combination that
    contains them rules out only combinations that also contain them.
    """

    def __init__(
        self,
        training: TrainingT,
        changes_of: Callable[[TrainingT], Sequence[tuple[str, TrainingT]]],
        may_fit: Callable[[Combination[TrainingT]], bool],
        already_made: Collection[str] = (),
        may_cost: tuple[str, ...] = (QUANTIZATION,),
    ) -> None:
        self._training, self._changes_of, self._already_made = training, changes_of, already_made
        self._compute_may_fit, self._may_cost = may_fit, may_cost
        self._not_fitting: list[tuple[str, ...]] = []
        self._tried: list[tuple[TrainingT, bool]] = []

    def covers(self, names: Iterable[str]) -> bool:
        """Return whether these changes are a part of a combination that does not fit."""
        needed = [name for name in names if name not in self._already_made]
        return any(
            all(_is_in(name, changes) for name in needed)
            and all(name in needed for name in changes if name.startswith(self._may_cost))
            for changes in self._not_fitting
        )

    def rule_out(self, names: Iterable[str], allowed: Collection[str]) -> bool:
        """Return whether the changes ``names`` do not fit even with as many of the ``allowed`` changes as possible."""
        needed = [name for name in names if name not in self._already_made]
        for added in (allowed, [name for name in allowed if not name.startswith(self._may_cost)]):
            combination = self._combine(needed, added)
            if combination is None or self._may_fit(combination):
                return False
            self._not_fitting.append(combination.names)
            if self.covers(needed):
                break
        return True

    def _may_fit(self, combination: Combination[TrainingT]) -> bool:
        """Return whether the combination may fit.

        A later change can replace an earlier one, so different combinations can give the same training. Each training
        is tried once.
        """
        for training, may_fit in self._tried:
            if training == combination.training:
                return may_fit
        self._tried.append((combination.training, self._compute_may_fit(combination)))
        return self._tried[-1][1]

    def rule_out_all(self, names: Sequence[str]) -> bool:
        """Return whether neither a single change nor any combination fits; try as few combinations as possible."""
        uncovered = [name for name in reversed(names) if name not in self._already_made]
        return all(self.covers([name]) or self.rule_out([name], names) for name in uncovered)

    def not_ruled_out(self, combinations: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
        """Return the combinations that may fit. Those of a half are tried only if all their changes together may fit.

        combinations: names of changes; all combinations have the same last change.
        """
        left = [names for names in combinations if not self.covers(names)]
        if len(left) < 2:
            return left
        if self.rule_out(left[0], {name for names in left for name in names}):
            return self.not_ruled_out(left)
        middle = len(left) // 2
        return [*self.not_ruled_out(left[:middle]), *self.not_ruled_out(left[middle:])]

    def _combine(self, names: Sequence[str], allowed: Collection[str]) -> Combination[TrainingT] | None:
        """Return the training with ``names`` and, costliest first, each allowed change that is still possible.

        Return None if ``names`` exclude each other.
        """
        made, training = list[str](), self._training
        while True:
            possible = dict(self._changes_of(training))
            left = [name for name in names if name not in made]
            choice = left or [name for name in possible if name in allowed and name not in made][-1:]
            if not choice:
                return Combination(tuple(made), training)
            if choice[0] not in possible:
                return None
            made.append(choice[0])
            training = possible[choice[0]]


def _is_in(name: str, changes: Collection[str]) -> bool:
    """Return whether the changes contain ``name``, or the same change with more GPUs."""
    return name in changes or any(
        GPU_COUNT.sub("", one) == GPU_COUNT.sub("", name) and _gpus(one) > _gpus(name) for one in changes
    )


def _gpus(name: str) -> int:
    found = GPU_COUNT.search(name)
    return int(found.group()) if found else 0
