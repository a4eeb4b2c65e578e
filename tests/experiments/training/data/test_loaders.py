import pytest
import torch

from experiments.errors import InputError
from experiments.suites.models import models
from experiments.training.data.loaders import prepare_data
from experiments.training.models.architecture import build_config
from tests.support.training.tiny_rows import GPT_NEO, LLAMA, OPT, T5, spec

CAPTIONED = {"dataset": "constant", "max_length": 30, "max_steps": 3}


def load_batches(name, longest_batch_index=None, **changes):
    data = prepare_data(spec(model=name, **changes), build_config(models()[name], "tiny"))
    loader = data.build_loader(longest_batch_index)
    assert len(loader) == data.batches_per_epoch
    return list(loader)


@pytest.mark.parametrize("name", [LLAMA, GPT_NEO])
def test_texts_for_a_language_model_have_tokens_of_its_vocabulary(name):
    batches = load_batches(name, dataset="alpaca2k", train_samples=None, max_length=200)
    assert len(batches) == 1000
    assert batches[0].keys() == {"input_ids", "attention_mask", "labels"}
    assert max(batch["input_ids"].max().item() for batch in batches) == 255


def test_batches_for_blip_2_have_images_with_captions_and_the_requested_batch_has_the_longest_caption():
    batches = load_batches(OPT, longest_batch_index=2)
    assert len(batches) == 6
    assert batches[0].keys() == {"pixel_values", "input_ids", "attention_mask", "labels"}
    assert max(batches, key=lambda batch: batch["attention_mask"].sum().item()) is batches[2]


@pytest.mark.parametrize("name", [OPT, T5])
def test_batches_for_blip_2_have_images_with_texts_of_constant_length(name):
    for batch in load_batches(name, train_samples=None, **CAPTIONED):
        assert (batch["pixel_values"].shape, batch["pixel_values"].dtype) == ((2, 3, 28, 28), torch.float32)
        assert batch["input_ids"].shape == (2, 30)
        assert batch["input_ids"].max() < 255
        assert torch.equal(batch["labels"], batch["input_ids"])


@pytest.mark.parametrize(("name", "labeled"), [(OPT, 34), (T5, 30)])
def test_the_input_with_image_begins_with_image_placeholders_before_the_text(name, labeled):
    batch = load_batches(name, input="with-image", train_samples=None, **CAPTIONED)[0]
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 34)
    assert (batch["input_ids"][:, :4] == 255).all()
    assert (batch["input_ids"][:, 4:] < 255).all()
    assert batch["labels"].shape == (2, labeled)


def test_captioned_images_are_rejected_for_a_language_model():
    words = f"dataset = 'gourmetgram-captions': model '{LLAMA}' takes no images; allowed: constant, alpaca2k, imdb"
    with pytest.raises(InputError, match=words):
        load_batches(LLAMA)
