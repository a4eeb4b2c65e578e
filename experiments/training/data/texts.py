"""Texts for language models in batches of token ids: real ones, or seeded twins that have the lengths of the real."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, log
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from experiments.errors import InputError
from experiments.suites.row_spec import RowSpec
from experiments.suites.settings import Settings
from experiments.training.data.collate import IGNORED_LABEL
from experiments.training.data.sampler import Batches

CONSTANT_STEPS = 100
TINY_TOKENS = 8

Collate = Callable[[list[torch.Tensor]], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Lengths:
    """Lengths of a set's texts in tokens: ``fixed`` ones that each text has, and a log-normal rest.

    chunked: a text longer than a sample may be becomes several samples; otherwise it is cut.
    """

    texts: int
    fixed: int
    median: float
    sigma: float
    chunked: bool

    def draw(self, longest: int, seed: int) -> list[int]:
        """The length of each sample; ``longest`` is the most tokens that a sample may have."""
        rest = np.random.default_rng(seed).lognormal(log(self.median), self.sigma, self.texts)
        whole = [self.fixed + max(1, round(length)) for length in rest]
        if not self.chunked:
            return [min(length, longest) for length in whole]
        return [min(longest, length - start) for length in whole for start in range(0, length, longest)]


# alpaca2k: the 2000 instructions that litgpt's Alpaca2k reads, in its prompt style alpaca, tokenizer of LLaMA. The
# template takes about 48 tokens with a text's first and last token. No token counts of these 2000 are published. The
# Alpaca instructions as first answered are too short: 95 % of them stay below 256 tokens (alpaca-lora's lengths.ipynb),
# while five batches of 4 that the multi-GPU lab printed the memory of had 250 to 425. Those answered by GPT-4 fit:
# their set has 1703 bytes a record where the first has 918, of which half is new answer, about 90 tokens more.
# Assumed from that: a mean of 220 tokens; sigma so that half of the batches of 4 are padded to 246 to 426.
# imdb: 25000 reviews of 235 words on average (Maas et al., 2011), tokenizer of GPT-2. Assumed: a mean of 290 tokens,
# a median of 215; the longest reviews are chunked like the guide's tokenizer does with return_overflowing_tokens.
TWINS = {
    "alpaca2k": Lengths(texts=2000, fixed=48, median=135, sigma=0.7, chunked=False),
    "imdb": Lengths(texts=25000, fixed=0, median=215, sigma=0.77, chunked=True),
}


class Texts(Dataset[Any]):
    """Texts as token ids, each (tokens,) int64, and their lengths; commit: the version of a set on the hub."""

    def __init__(self, lengths: Sequence[int], commit: str | None = None) -> None:
        self.lengths, self.commit = lengths, commit

    def __len__(self) -> int:
        return len(self.lengths)


class DrawnTexts(Texts):
    """Texts of random token ids below ``vocabulary``; the same for the same seed."""

    def __init__(self, lengths: Sequence[int], vocabulary: int, seed: int) -> None:
        super().__init__(lengths)
        self._vocabulary, self._seed = vocabulary, seed

    def __getitem__(self, index: int) -> torch.Tensor:
        draw = np.random.default_rng((self._seed, index))
        return torch.from_numpy(draw.integers(self._vocabulary, size=self.lengths[index]))


class ReadTexts(Texts):
    """Texts that are there."""

    def __init__(self, texts: Sequence[torch.Tensor], commit: str | None) -> None:
        super().__init__([len(text) for text in texts], commit)
        self._texts = texts

    def __getitem__(self, index: int) -> torch.Tensor:
        return self._texts[index]


def padded(texts: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch: input_ids, attention_mask and labels, (batch, tokens) int64, padded to the longest text.

    The labels are the texts themselves, without their padding.
    """
    return {
        "input_ids": pad_sequence(texts, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(text) for text in texts], batch_first=True),
        "labels": pad_sequence(texts, batch_first=True, padding_value=IGNORED_LABEL),
    }


def open_texts(spec: RowSpec, vocabulary: int) -> Texts:
    """The texts that the row trains on over all ranks, ids below ``vocabulary``; they make whole optimizer steps.

    Texts of constant length are drawn whatever the row's data is. In miniature all others are cut to their first
    ``TINY_TOKENS``: beside so narrow a model whole ones would leave activations alone to be seen, and none of what a
    row does to parameters and optimizer state. Raises InputError when the data set has no texts, too few, or tokens
    that the model does not know, or cannot be read.
    """
    settings = spec.settings
    if settings.dataset not in ("constant", *TWINS):
        allowed = ", ".join(("constant", *TWINS))
        raise InputError(f"dataset = {settings.dataset!r}: has no texts for a language model; allowed: {allowed}")
    if spec.data == "synthetic" or settings.dataset == "constant":
        lengths = _lengths(spec)
        return DrawnTexts(lengths[: _trained_on(settings, len(lengths))], vocabulary, settings.seed)
    from experiments.training.data.corpora import read_texts

    texts, commit = read_texts(spec)
    if (highest := max((int(text.max()) for text in texts if len(text)), default=0)) >= vocabulary:
        raise InputError(f"model {settings.model!r}: knows {vocabulary} tokens, its tokenizer has number {highest}")
    texts = [text[: _longest(spec)] for text in texts[: _trained_on(settings, len(texts))]]
    return ReadTexts(texts, commit)


def build_text_loader(
    spec: RowSpec, texts: Texts, heaviest_at: int | None, collate: Collate = padded
) -> DataLoader[Any]:
    """Batches of this rank's share of ``texts`` in the row's order; see Batches for heaviest_at.

    Without workers: the texts are in memory, or drawn.
    """
    settings = spec.settings
    return DataLoader(
        texts,
        batch_sampler=Batches(texts.lengths, settings.batch_size, settings.seed, heaviest_at, settings.world_size),
        collate_fn=collate,
    )


def batches_per_epoch(spec: RowSpec, texts: Texts) -> int:
    """Micro-steps of an epoch on each rank."""
    return len(texts) // (spec.settings.batch_size * spec.settings.world_size)


def _trained_on(settings: Settings, there: int) -> int:
    """How many of the texts beside the validation are trained on: what is left over of an optimizer step is dropped."""
    if there < (settings.train_samples or 1):
        raise InputError(
            f"train_samples = {settings.train_samples}: {settings.dataset} has {there} texts beside its validation"
        )
    wanted = settings.train_samples or there
    steps = wanted // settings.global_batch_size
    if not steps:
        raise InputError(
            f"global_batch_size = {settings.global_batch_size}: {settings.dataset} has only {wanted} texts to train on"
        )
    return steps * settings.global_batch_size


def _longest(spec: RowSpec) -> int:
    """The most tokens that are kept of a text."""
    return TINY_TOKENS if spec.size == "tiny" else spec.settings.max_length


def _lengths(spec: RowSpec) -> list[int]:
    """Tokens of each drawn text beside the validation, over all ranks."""
    settings = spec.settings
    if settings.dataset == "constant":
        steps = settings.max_steps if settings.max_steps > 0 else CONSTANT_STEPS
        return [settings.max_length] * (settings.train_samples or steps * settings.global_batch_size)
    drawn = TWINS[settings.dataset].draw(settings.max_length, settings.seed)
    lengths = [min(length, _longest(spec)) for length in drawn]
    share = settings.validation < 1
    return lengths[: len(lengths) - ceil(len(lengths) * settings.validation if share else settings.validation)]
