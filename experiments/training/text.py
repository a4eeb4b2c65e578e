"""Texts for language models: seeded synthetic twins that have the lengths of the real sets, in batches of token ids."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, log

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from experiments.errors import InputError
from experiments.recipe import RowSpec
from experiments.training.data import IGNORED_LABEL, Batches

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


class Texts(Dataset):
    """Texts of random token ids below ``vocabulary``, each an int64 tensor; the same for the same seed."""

    def __init__(self, lengths: Sequence[int], vocabulary: int, seed: int) -> None:
        self.lengths = lengths
        self._vocabulary, self._seed = vocabulary, seed

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> torch.Tensor:
        draw = np.random.default_rng((self._seed, index))
        return torch.from_numpy(draw.integers(self._vocabulary, size=self.lengths[index]))


def padded(texts: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch: input_ids, attention_mask and labels, (batch, tokens) int64, padded to the longest text.

    The labels are the texts themselves, without their padding.
    """
    return {
        "input_ids": pad_sequence(texts, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(text) for text in texts], batch_first=True),
        "labels": pad_sequence(texts, batch_first=True, padding_value=IGNORED_LABEL),
    }


def build_text_loader(spec: RowSpec, vocabulary: int, heaviest_at: int | None, collate: Collate = padded) -> DataLoader:
    """Batches of this rank's texts in the row's order, ids below ``vocabulary``; see Batches for heaviest_at.

    Without workers: the texts are drawn, not read. Raises InputError when the data set has too few of them.
    """
    settings = spec.settings
    lengths = _lengths(spec)[: batches_per_epoch(spec) * settings.batch_size * settings.world_size]
    return DataLoader(
        Texts(lengths, vocabulary, settings.seed),
        batch_sampler=Batches(lengths, settings.batch_size, settings.seed, heaviest_at, settings.world_size),
        collate_fn=collate,
    )


def batches_per_epoch(spec: RowSpec) -> int:
    """Micro-steps of an epoch on each rank: whole optimizer steps, what is left over is dropped.

    Raises InputError when the data set has not enough texts for one.
    """
    settings = spec.settings
    texts = len(_lengths(spec))
    steps = texts // settings.global_batch_size
    if not steps:
        raise InputError(
            f"global_batch_size = {settings.global_batch_size}: {settings.dataset} has only {texts} texts to train on"
        )
    return steps * settings.accumulate


def _lengths(spec: RowSpec) -> list[int]:
    """Tokens of each text that is trained on, over all ranks.

    In miniature the texts of a real set's twin are cut to their first ``TINY_TOKENS``: beside so narrow a model whole
    ones would leave activations alone to be seen, and none of what a row does to parameters and optimizer state.
    """
    settings = spec.settings
    if settings.dataset == "constant":
        steps = settings.max_steps if settings.max_steps > 0 else CONSTANT_STEPS
        return [settings.max_length] * (settings.train_samples or steps * settings.global_batch_size)
    twin = TWINS.get(settings.dataset)
    if twin is None:
        allowed = ", ".join(("constant", *TWINS))
        raise InputError(f"dataset = {settings.dataset!r}: has no texts for a language model; allowed: {allowed}")
    lengths = twin.draw(settings.max_length, settings.seed)
    if spec.size == "tiny":
        lengths = [min(length, TINY_TOKENS) for length in lengths]
    share = settings.validation < 1
    left = len(lengths) - ceil(len(lengths) * settings.validation if share else settings.validation)
    if left < (settings.train_samples or 1):
        raise InputError(
            f"train_samples = {settings.train_samples}: {settings.dataset} has {left} texts beside its validation"
        )
    return lengths[: settings.train_samples or left]
