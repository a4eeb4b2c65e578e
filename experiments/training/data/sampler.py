"""Select the samples of each batch."""

import random
from collections.abc import Iterator, Sequence

from torch import distributed
from torch.utils.data import Sampler

from experiments.errors import InputError


class SeededBatchSampler(Sampler[list[int]]):
    """Sampler of batches of ``batch_size`` indices, shuffled in every epoch. An incomplete batch is dropped.

    lengths: the number of words or tokens of each sample. longest_batch_index: index of the batch that gets the longest
    samples, so that a shortened run reaches the peak memory of the full training; the index counts over all epochs;
    None: no such batch. packed: whether texts are packed without padding; then the batch with the most tokens of the
    epoch is moved to longest_batch_index. ranks: number of ranks, which share the samples. Raises InputError if there
    are fewer samples than each rank needs for one batch.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        longest_batch_index: int | None,
        ranks: int = 1,
        packed: bool = False,
    ) -> None:
        if batch_size * ranks > len(lengths):
            raise InputError(
                f"batch_size = {batch_size}: the data set has only {len(lengths)} samples for {ranks} device(s)"
            )
        self._lengths, self._batch_size, self._longest_at, self._ranks = lengths, batch_size, longest_batch_index, ranks
        self._packed = packed
        self._shuffle = random.Random(seed)
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._lengths) // (self._batch_size * self._ranks)

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.batches_of(distributed.get_rank() if distributed.is_initialized() else 0)

    def batches_of(self, rank: int) -> Iterator[list[int]]:
        """Yield the batches of a rank in the next epoch."""
        order = list(range(rank, len(self._lengths), self._ranks))
        self._shuffle.shuffle(order)
        batches = [order[start : start + self._batch_size] for start in range(0, len(order), self._batch_size)]
        batches = batches[: len(self)]
        index = -1 if self._longest_at is None else self._longest_at - self._epoch * len(self)
        if 0 <= index < len(batches) and self._packed:
            tokens = [sum(self._lengths[sample] for sample in batch) for batch in batches]
            longest = tokens.index(max(tokens))
            batches[index], batches[longest] = batches[longest], batches[index]
        elif 0 <= index < len(batches):
            by_length = sorted(order, key=self._lengths.__getitem__, reverse=True)
            batches[index] = by_length[: self._batch_size]
        self._epoch += 1
        yield from batches  # lazily, because a loader with workers creates two iterators and uses only one of them
