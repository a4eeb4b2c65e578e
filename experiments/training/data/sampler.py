"""Which samples make up each batch."""

import random
from collections.abc import Iterator, Sequence

from torch import distributed
from torch.utils.data import Sampler

from experiments.errors import InputError


class Batches(Sampler[list[int]]):
    """Index lists of ``batch_size``, reshuffled every epoch by the seed, a remainder dropped.

    lengths has a number for each sample, its words or tokens. heaviest_at, when given, is the place, counted from the
    first epoch on, that gets the longest samples: a run that is cut short then still meets the most memory that the
    whole training would. Each of several ranks takes every ranks-th sample.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int, heaviest_at: int | None, ranks: int = 1
    ) -> None:
        if batch_size * ranks > len(lengths):
            raise InputError(
                f"batch_size = {batch_size}: the data set has only {len(lengths)} samples for {ranks} device(s)"
            )
        self._lengths, self._batch_size, self._heaviest_at, self._ranks = lengths, batch_size, heaviest_at, ranks
        self._shuffle = random.Random(seed)
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._lengths) // (self._batch_size * self._ranks)

    def __iter__(self) -> Iterator[list[int]]:
        rank = distributed.get_rank() if distributed.is_initialized() else 0
        order = list(range(rank, len(self._lengths), self._ranks))
        self._shuffle.shuffle(order)
        batches = [order[start : start + self._batch_size] for start in range(0, len(order), self._batch_size)]
        batches = batches[: len(self)]
        place = -1 if self._heaviest_at is None else self._heaviest_at - self._epoch * len(self)
        if 0 <= place < len(batches):
            by_length = sorted(order, key=self._lengths.__getitem__, reverse=True)
            batches[place] = by_length[: self._batch_size]
        self._epoch += 1
        yield from batches  # lazily: a loader with workers makes two iterators and takes from one
