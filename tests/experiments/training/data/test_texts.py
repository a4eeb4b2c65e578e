from itertools import chain
from statistics import mean, median, quantiles
from typing import Any

import pytest
import torch
from torch import distributed

from experiments.errors import InputError
from experiments.training.data.texts import (
    TINY_TOKENS,
    batch_lengths,
    batches_per_epoch,
    build_text_loader,
    open_texts,
    pack_texts,
)
from tests.support.training.tiny_rows import spec

VOCABULARY = 100


def row(**changes):
    settings: dict[str, Any] = {
        "dataset": "alpaca2k",
        "train_samples": None,
        "max_length": 512,
        "batch_size": 4,
        "size": "full",
    }
    return spec(**settings | changes)


def open_row_texts(**changes):
    return open_texts(row(**changes), VOCABULARY)


def text_loader(longest_batch_index=None, **changes):
    return build_text_loader(row(**changes), open_row_texts(**changes), longest_batch_index)


def number_of_batches(**changes):
    return batches_per_epoch(row(**changes), open_row_texts(**changes))


def lengths(**changes):
    """Return the length of every training text, on one rank."""
    return open_row_texts(batch_size=1, **changes).lengths


def test_a_batch_is_padded_to_its_longest_text_with_ignored_labels():
    for batch in text_loader():
        assert batch.keys() == {"input_ids", "attention_mask", "labels"}
        tokens = batch["attention_mask"].sum(dim=1)
        assert {tensor.shape for tensor in batch.values()} == {(4, max(tokens.tolist()))}
        assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
        real = torch.arange(tokens.max()) < tokens[:, None]
        assert torch.equal(batch["attention_mask"], real.long())
        assert torch.equal(batch["labels"], batch["input_ids"].where(real, -100))
        assert (batch["input_ids"][~real] == 0).all()


def test_packed_texts_follow_each_other_and_no_text_predicts_the_beginning_of_the_next():
    batch = pack_texts([torch.tensor([5, 6, 7]), torch.tensor([8]), torch.tensor([9, 10])])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 10]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, -100, 10]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert batch["places"].tolist() == [0, 1, 2, 3, 6, 7]


def test_packed_batches_have_the_texts_of_padded_ones_and_the_one_with_most_tokens_is_where_requested():
    changes: dict[str, Any] = {"engine": "litgpt", "train_samples": 40}
    padded, packed = text_loader(**changes), text_loader(3, packing=True, **changes)
    batches, in_place = list(padded.batch_sampler), list(packed.batch_sampler)
    tokens = [sum(packed.dataset.lengths[one] for one in batch) for batch in batches]
    fullest = tokens.index(max(tokens))
    assert fullest != 3
    batches[3], batches[fullest] = batches[fullest], batches[3]
    assert in_place == batches


def test_the_length_of_a_packed_batch_is_the_sum_of_the_lengths_of_its_texts():
    changes: dict[str, Any] = {"engine": "litgpt", "train_samples": 40}
    batches = list(text_loader(**changes))
    packed, padded = (batch_lengths(row(packing=packing, **changes)) for packing in (True, False))
    assert packed == [int(batch["attention_mask"].sum()) for batch in batches]
    assert padded == [batch["attention_mask"].shape[1] for batch in batches]


def test_the_length_of_a_batch_on_several_ranks_is_that_of_the_longest_text_on_any_rank():
    one, two = (batch_lengths(row(engine="litgpt", batch_size=4, devices=devices)) for devices in (1, 2))
    assert len(two) == len(one) // 2
    assert sum(two) / len(two) > sum(one) / len(one)


def test_random_tokens_cover_the_whole_vocabulary():
    seen = set(chain.from_iterable(batch["labels"].flatten().tolist() for batch in text_loader()))
    assert seen == {-100, *range(VOCABULARY)}


@pytest.mark.parametrize("dataset", ["alpaca2k", "constant"])
def test_random_texts_are_reproducible(dataset):
    first, again, other = (list(text_loader(dataset=dataset, seed=seed)) for seed in (1, 1, 2))
    assert all(torch.equal(one["input_ids"], two["input_ids"]) for one, two in zip(first, again, strict=True))
    assert not any(torch.equal(one["input_ids"], two["input_ids"]) for one, two in zip(first, other, strict=True))


def test_random_texts_differ():
    texts = open_row_texts(dataset="constant")
    assert not torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], open_row_texts(dataset="constant", seed=1)[0])


@pytest.mark.parametrize(("validation", "left"), [(0.0, 2000), (0.2, 1600), (0.5, 1000), (0.9, 200), (100, 1900)])
def test_texts_for_validation_are_excluded_as_a_share_or_as_a_number(validation, left):
    assert len(lengths(validation=validation)) == left
    assert number_of_batches(validation=validation) == left // 4


def test_constant_texts_all_have_the_maximum_length():
    assert set(lengths(dataset="constant", max_length=37)) == {37}
    assert {batch["input_ids"].shape for batch in text_loader(dataset="constant", max_length=37)} == {(4, 37)}


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({}, 100),
        ({"accumulate": 3}, 300),
        ({"accumulate": 3, "max_steps": 5}, 15),
        ({"devices": 2, "max_steps": 5}, 5),
        ({"train_samples": 40}, 10),
    ],
)
def test_there_are_as_many_constant_texts_as_the_row_needs(changes, needed):
    assert number_of_batches(dataset="constant", **changes) == needed
    assert len(text_loader(dataset="constant", **changes)) == needed


def test_alpaca_texts_follow_a_template_and_are_cut_to_the_maximum_length():
    tokens = lengths()
    assert min(tokens) > 48
    assert max(tokens) == 512
    assert max(lengths(max_length=300)) == 300
    assert mean(lengths(max_length=10**6)) == pytest.approx(220, rel=0.05)


@pytest.mark.parametrize("dataset", ["alpaca2k", "imdb"])
def test_tiny_models_get_the_same_number_of_texts_but_shorter_ones(dataset):
    whole, short = (lengths(dataset=dataset, size=size) for size in ("full", "tiny"))
    assert short == [min(length, TINY_TOKENS) for length in whole]


def test_batches_of_four_alpaca_texts_are_as_long_as_in_the_lab():
    padded = [batch["input_ids"].shape[1] for batch in text_loader()]
    low, middle, high = quantiles(padded, n=4)
    assert low == pytest.approx(246, rel=0.1)
    assert 290 < middle < 350
    assert high == pytest.approx(426, rel=0.1)


def test_synthetic_imdb_reviews_have_the_average_lengths_of_the_real_ones():
    tokens = lengths(dataset="imdb", max_length=10**6)
    assert len(tokens) == 25000
    assert mean(tokens) == pytest.approx(290, rel=0.03)
    assert median(tokens) == pytest.approx(215, rel=0.03)


def test_imdb_reviews_are_split_into_samples_without_losing_tokens():
    tokens = lengths(dataset="imdb", max_length=256)
    assert max(tokens) == 256
    assert sum(tokens) == sum(lengths(dataset="imdb", max_length=10**6))
    assert sum(length < 256 for length in tokens) <= 25000
    assert len(tokens) - len(lengths(dataset="imdb", max_length=256, validation=1000)) == 1000


@pytest.mark.parametrize("longest_batch_index", [0, 3])
def test_the_longest_texts_are_in_the_requested_batch(longest_batch_index):
    loader = text_loader(longest_batch_index, train_samples=40, max_length=10**6)
    longest = sorted(loader.dataset.lengths)[-4:]
    batch = list(loader)[longest_batch_index]
    assert sorted(batch["attention_mask"].sum(dim=1).tolist()) == longest


def test_an_epoch_consists_of_whole_optimizer_steps():
    assert number_of_batches(validation=0.5, batch_size=8, accumulate=4) == 124
    assert len(text_loader(validation=0.5, batch_size=8, accumulate=4)) == 124


def test_the_texts_are_divided_among_the_ranks(monkeypatch):
    loader = text_loader(validation=0.2, devices=4)
    assert len(loader) == number_of_batches(validation=0.2, devices=4) == 100
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    indices_by_rank = []
    for rank in range(4):
        monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
        indices_by_rank.append(list(chain.from_iterable(loader.batch_sampler)))
    assert {len(indices) for indices in indices_by_rank} == {400}
    assert sorted(chain.from_iterable(indices_by_rank)) == list(range(1600))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": "gourmetgram-captions"}, "no texts for a language model; allowed: constant, alpaca2k, imdb$"),
        ({"validation": 0.9, "batch_size": 256}, r"global_batch_size = 256: alpaca2k has only 200 texts to train on$"),
        ({"train_samples": 1700, "validation": 0.2}, r"train_samples = 1700: alpaca2k has only 1600 training texts"),
    ],
)
def test_missing_texts_are_rejected(changes, words):
    with pytest.raises(InputError, match=words):
        open_row_texts(**changes)
