"""Provide texts for language models as batches of token ids: real texts, or random texts with realistic lengths."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil, log
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from experiments.errors import InputError
from experiments.suites.row_spec import RowSpec
from experiments.suites.settings import Settings
from experiments.training.data.collate import IGNORED_LABEL, Batch
from experiments.training.data.sampler import SeededBatchSampler

CONSTANT_STEPS = 100
"""Number of optimizer steps for which texts of constant length are made, unless the row states its steps or texts."""
TINY_TOKENS = 8
"""Maximum number of tokens of a text for tiny models."""

Collate = Callable[[list[torch.Tensor]], Batch]


@dataclass(frozen=True)
class LengthDistribution:
    """Distribution of the text lengths of a data set in tokens: ``fixed_tokens`` plus a log-normal random number.

    text_count: number of texts. median, sigma: parameters of the log-normal distribution. chunked: whether a text that
    is too long is split into several samples; otherwise it is cut.
    """

    text_count: int
    fixed_tokens: int
    median: float
    sigma: float
    chunked: bool

    def draw(self, max_tokens: int, seed: int) -> list[int]:
        """Return a random length for each sample, in tokens, of at most ``max_tokens``."""
        variable = np.random.default_rng(seed).lognormal(log(self.median), self.sigma, self.text_count)
        lengths = [self.fixed_tokens + max(1, round(length)) for length in variable]
        if not self.chunked:
            return [min(length, max_tokens) for length in lengths]
        return [min(max_tokens, length - start) for length in lengths for start in range(0, length, max_tokens)]


# alpaca2k: the 2000 instructions of litgpt's Alpaca2k in the prompt style alpaca, with LLaMA's tokenizer. The template
# takes about 48 tokens, including the first and last token of a text. No token counts of these 2000 texts are
# published. The multi-GPU lab printed the memory of five batches of 4 texts, whose padded lengths were 250 to 425
# tokens. With the original Alpaca answers, the texts would be too short: 95 % have fewer than 256 tokens (alpaca-lora's
# lengths.ipynb). With the answers of GPT-4, the lengths agree: that data set has 1703 bytes per record instead of 918.
# Half of the additional bytes are in the answers, which are about 90 tokens longer.
# Therefore the distribution has an assumed mean of 220 tokens, and a sigma for which half of the batches of 4 are
# padded to 246 to 426 tokens.
# imdb: 25000 reviews of 235 words on average (Maas et al., 2011), with GPT-2's tokenizer. The distribution has an
# assumed mean of 290 tokens and an assumed median of 215. Long reviews are chunked, as the guide's tokenizer does with
# return_overflowing_tokens.
SYNTHETIC_LENGTHS = {
    "alpaca2k": LengthDistribution(text_count=2000, fixed_tokens=48, median=135, sigma=0.7, chunked=False),
    "imdb": LengthDistribution(text_count=25000, fixed_tokens=0, median=215, sigma=0.77, chunked=True),
}


class TextDataset(Dataset[Any]):
    """Data set of texts as token ids, each (tokens,) int64, with their lengths; commit: its version on the hub."""

    def __init__(self, lengths: Sequence[int], commit: str | None = None) -> None:
        self.lengths, self.commit = lengths, commit

    def __len__(self) -> int:
        return len(self.lengths)


class SyntheticTexts(TextDataset):
    """Texts of random token ids below ``vocabulary_size``. Equal seeds give equal texts."""

    def __init__(self, lengths: Sequence[int], vocabulary_size: int, seed: int) -> None:
        super().__init__(lengths)
        self._vocabulary_size, self._seed = vocabulary_size, seed

    def __getitem__(self, index: int) -> torch.Tensor:
        generator = np.random.default_rng((self._seed, index))
        return torch.from_numpy(generator.integers(self._vocabulary_size, size=self.lengths[index]))


class TokenizedTexts(TextDataset):
    """Tokenized texts in memory."""

    def __init__(self, texts: Sequence[torch.Tensor], commit: str | None) -> None:
        super().__init__([len(text) for text in texts], commit)
        self._texts = texts

    def __getitem__(self, index: int) -> torch.Tensor:
        return self._texts[index]


def pad_texts(texts: list[torch.Tensor]) -> Batch:
    """Return a batch: input_ids, attention_mask and labels, (batch, tokens) int64, padded to the longest text.

    The labels are the token ids, and IGNORED_LABEL for padding.
    """
    return {
        "input_ids": pad_sequence(texts, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(text) for text in texts], batch_first=True),
        "labels": pad_sequence(texts, batch_first=True, padding_value=IGNORED_LABEL),
    }


def pack_texts(texts: list[torch.Tensor]) -> Batch:
    """Return a batch of concatenated texts: input_ids and labels, (1, tokens) int64.

    The first label of a text is ignored, so that no text predicts the next one. The other entries of the batch:
    attention_mask (texts, longest text), the mask of the same texts as a padded batch; places (tokens,), index of each
    token in the flattened padded batch; starts (texts + 1,) int32, index of each text's first token in the
    concatenation, followed by the number of all tokens.
    """
    mask = pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
    labels = [torch.cat([torch.tensor([IGNORED_LABEL]), text[1:]]) for text in texts]
    return {
        "input_ids": torch.cat(texts)[None],
        "attention_mask": mask,
        "labels": torch.cat(labels)[None],
        "places": mask.flatten().nonzero().squeeze(1),
        "starts": torch.tensor([0, *accumulate(len(text) for text in texts)], dtype=torch.int32),
    }


def open_texts(spec: RowSpec, vocabulary_size: int) -> TextDataset:
    """Return the training texts of all ranks of the row. Their number fills whole optimizer steps.

    Token ids are below ``vocabulary_size``. Texts of constant length are always random. For tiny models, all other
    texts are cut to TINY_TOKENS tokens. The activations of longer texts would hide how a row's settings change the
    memory of parameters and optimizer state. Raises InputError if the data set cannot be read, has too few texts, or
    has token ids that are not in the model's vocabulary.
    """
    settings = spec.settings
    if settings.dataset not in ("constant", *SYNTHETIC_LENGTHS):
        allowed = ", ".join(("constant", *SYNTHETIC_LENGTHS))
        raise InputError(f"dataset = {settings.dataset!r}: has no texts for a language model; allowed: {allowed}")
    if spec.data == "synthetic" or settings.dataset == "constant":
        lengths = _random_lengths(spec)
        return SyntheticTexts(lengths[: _training_text_count(settings, len(lengths))], vocabulary_size, settings.seed)
    from experiments.training.data.corpora import read_texts

    texts, commit = read_texts(spec)
    if (highest := max((int(text.max()) for text in texts if len(text)), default=0)) >= vocabulary_size:
        raise InputError(
            f"model {settings.model!r}: has a vocabulary of {vocabulary_size} tokens,"
            f" but its tokenizer uses the token id {highest}"
        )
    texts = [text[: _max_tokens(spec)] for text in texts[: _training_text_count(settings, len(texts))]]
    return TokenizedTexts(texts, commit)


def build_text_loader(
    spec: RowSpec, texts: TextDataset, longest_batch_index: int | None, collate: Collate = pad_texts
) -> DataLoader[Any]:
    """Return a loader of this rank's share of ``texts``. longest_batch_index: see SeededBatchSampler.

    The loader has no workers, because the texts are random or already in memory.
    """
    sampler = _build_sampler(spec.settings, texts.lengths, longest_batch_index)
    return DataLoader(texts, batch_sampler=sampler, collate_fn=collate)


def batches_per_epoch(spec: RowSpec, texts: TextDataset) -> int:
    """Return the number of micro-steps per epoch on each rank."""
    return len(texts) // (spec.settings.batch_size * spec.settings.world_size)


def batch_lengths(spec: RowSpec) -> list[int]:
    """Return the length of the batch in each micro-step of an epoch, in tokens; empty for data sets of images.

    The length of a batch is the length of its longest text or, if texts are packed, the total length of its texts.
    Ranks wait for each other. Therefore, of the batches that the ranks process in one micro-step, the longest counts.
    """
    settings = spec.settings
    if settings.dataset not in ("constant", *SYNTHETIC_LENGTHS):
        return []
    lengths = _random_lengths(spec)
    lengths = lengths[: _training_text_count(settings, len(lengths))]
    batch_length = sum if settings.packing else max
    batches_by_rank = [_build_sampler(settings, lengths, None).batches_of(rank) for rank in range(settings.world_size)]
    return [
        max(batch_length(lengths[index] for index in batch) for batch in batches)
        for batches in zip(*batches_by_rank, strict=True)
    ]


def _build_sampler(settings: Settings, lengths: Sequence[int], longest_batch_index: int | None) -> SeededBatchSampler:
    return SeededBatchSampler(
        lengths, settings.batch_size, settings.seed, longest_batch_index, settings.world_size, packed=settings.packing
    )


def _training_text_count(settings: Settings, available: int) -> int:
    """Return how many of the ``available`` texts are used for training, in complete optimizer steps."""
    if available < (settings.train_samples or 1):
        raise InputError(
            f"train_samples = {settings.train_samples}: {settings.dataset} has only {available} training texts"
        )
    samples = settings.train_samples or available
    steps = samples // settings.global_batch_size
    if not steps:
        raise InputError(
            f"global_batch_size = {settings.global_batch_size}: {settings.dataset} has only {samples} texts to train on"
        )
    return steps * settings.global_batch_size


def _max_tokens(spec: RowSpec) -> int:
    """Return the maximum number of tokens of a text."""
    return TINY_TOKENS if spec.size == "tiny" else spec.settings.max_length


def _random_lengths(spec: RowSpec) -> list[int]:
    """Return the length of each random training text of all ranks, in tokens."""
    settings = spec.settings
    if settings.dataset == "constant":
        steps = settings.max_steps if settings.max_steps > 0 else CONSTANT_STEPS
        return [settings.max_length] * (settings.train_samples or steps * settings.global_batch_size)
    drawn = SYNTHETIC_LENGTHS[settings.dataset].draw(settings.max_length, settings.seed)
    lengths = [min(length, _max_tokens(spec)) for length in drawn]
    is_share = settings.validation < 1
    return lengths[: len(lengths) - ceil(len(lengths) * settings.validation if is_share else settings.validation)]
