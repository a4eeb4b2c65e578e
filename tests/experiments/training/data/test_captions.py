import json
import multiprocessing
import os
from multiprocessing import forkserver

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from experiments.errors import InputError
from experiments.suites.models import models
from experiments.training.data.captions import (
    FolderCaptionDataset,
    SyntheticCaptionDataset,
    build_caption_loader,
    loader_worker_context,
    open_captions,
)
from experiments.training.data.collate import CaptionCollator, build_caption_collator, caption_tokenizer
from experiments.training.data.sampler import SeededBatchSampler
from experiments.training.models.architecture import build_config
from tests.support.training.tiny_rows import OPT, T5, spec

FAMILIES = [OPT, T5]


def test_synthetic_captions_are_reproducible():
    first, again, other = (SyntheticCaptionDataset(20, 28, seed) for seed in (1, 1, 2))
    assert first.texts == again.texts != other.texts
    image, next_image, same, others = (
        np.asarray(samples[n][0]) for samples, n in ((first, 3), (first, 4), (again, 3), (other, 3))
    )
    assert np.array_equal(image, same)
    assert not np.array_equal(image, next_image)
    assert not np.array_equal(image, others)


def test_synthetic_captions_have_8_to_31_words_and_an_rgb_image():
    captions = SyntheticCaptionDataset(300, 28, seed=0)
    assert len(captions) == 300
    assert {len(text.split()) for text in captions.texts} == set(range(8, 32))
    image, text = captions[7]
    assert (image.mode, image.size, text) == ("RGB", (28, 28), captions.texts[7])


@pytest.fixture
def images(tmp_path):
    """A folder with three images: in color, gray and with transparency."""
    for name, mode, size in (("a.png", "RGB", (8, 6)), ("b.jpg", "L", (5, 9)), ("c.png", "RGBA", (7, 7))):
        Image.new(mode, size, 128).save(tmp_path / name)
    return tmp_path


def as_lines(folder, *records):
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n\n")
    return folder


def metadata_record(name, **text):
    return {"file_name": name, **(text or {"text": f"caption of {name}"})}


def test_a_folder_with_jsonl_metadata_is_read_in_order(images):
    folder = as_lines(
        images, metadata_record("a.png"), metadata_record("b.jpg", caption="gray"), metadata_record("c.png")
    )
    captions = FolderCaptionDataset(folder, 3)
    assert captions.texts == ["caption of a.png", "gray", "caption of c.png"]
    assert [(image.mode, image.size) for image, _ in (captions[0], captions[1], captions[2])] == [
        ("RGB", (8, 6)),
        ("RGB", (5, 9)),
        ("RGB", (7, 7)),
    ]
    assert captions[1][1] == "gray"


def test_no_more_samples_than_needed_are_read_from_a_folder_with_csv_metadata(images):
    (images / "metadata.csv").write_text('file_name,caption\na.png,"one, two"\nb.jpg,three\nnone.png,four\n')
    captions = FolderCaptionDataset(images, 2)
    assert len(captions) == 2
    assert captions.texts == ["one, two", "three"]


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        (None, "", r": a data folder needs metadata\.jsonl or metadata\.csv"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "x"}', r": has 1 captioned images, the row trains on 2$"),
        ("metadata.jsonl", '{"file_name": "a.png"', r"metadata\.jsonl: every record needs file_name and text \(Expect"),
        ("metadata.jsonl", '{"file_name": "a.png"}', r"metadata\.jsonl: every record needs .*\('caption'\)$"),
        ("metadata.jsonl", '{"text": "x"}', r"metadata\.jsonl: every record needs .*\('file_name'\)$"),
        ("metadata.jsonl", '["a.png", "x"]', r"metadata\.jsonl: every record needs file_name and text \("),
        ("metadata.jsonl", '{"file_name": "a.png", "text": null}', r"metadata\.jsonl: every record needs .*record 1 "),
        ("metadata.csv", "name,text\na.png,x\n", r"metadata\.csv: every record needs .*\('file_name'\)$"),
        ("metadata.csv", "file_name,text\na.png\n", r"metadata\.csv: every record needs .*\(record 1 has"),
    ],
)
def test_the_error_for_invalid_metadata_names_its_file(images, file, text, words):
    if file:
        (images / file).write_text(text)
    with pytest.raises(InputError, match=str(images) + ".*" + words):
        FolderCaptionDataset(images, 2)


@pytest.mark.parametrize("file", ["metadata.jsonl", "metadata.csv"])
def test_metadata_that_is_not_text_is_rejected(images, file):
    (images / file).write_bytes(b"\xff\xfe\x00\xff")
    with pytest.raises(InputError, match=file):
        FolderCaptionDataset(images, 1)


def test_unreadable_metadata_is_rejected(images):
    (images / "metadata.jsonl").mkdir()
    with pytest.raises(InputError, match=r"metadata\.jsonl: cannot be read \(Is a directory\)$"):
        FolderCaptionDataset(images, 1)


def test_a_missing_image_is_rejected_before_training(images):
    with pytest.raises(InputError, match=r"gone\.png: the image that the metadata names is missing$"):
        FolderCaptionDataset(as_lines(images, metadata_record("a.png"), metadata_record("gone.png")), 2)


def test_the_error_for_a_corrupt_image_names_the_image(images):
    (images / "a.png").write_bytes(b"no image")
    captions = FolderCaptionDataset(as_lines(images, metadata_record("a.png")), 1)
    with pytest.raises(InputError, match=r"a\.png: the image cannot be read \(not an image\)$"):
        captions[0]


def test_a_row_reads_the_captions_of_its_data_folder_or_otherwise_synthetic_ones(images):
    as_lines(images, metadata_record("a.png"), metadata_record("c.png"))
    assert open_captions(spec(data=str(images), train_samples=2), 28).texts == ["caption of a.png", "caption of c.png"]
    assert open_captions(spec(train_samples=2, seed=3), 28).texts == SyntheticCaptionDataset(2, 28, seed=3).texts


def config_of(name, size="tiny"):
    return build_config(models()[name], size)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", ["tiny", "full"])
def test_special_tokens_have_the_ids_of_the_model(name, size):
    text = config_of(name, size).text_config
    tokenizer = caption_tokenizer(SyntheticCaptionDataset(50, 28, 0).texts, text.model_type, text.vocab_size)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (text.pad_token_id, text.eos_token_id)
    assert len(tokenizer) < text.vocab_size
    assert max(tokenizer.get_vocab().values()) < config_of(name, size).image_token_index


@pytest.mark.parametrize("name", FAMILIES)
def test_no_word_has_the_id_of_the_image_token(name):
    captions = [f"word{number}" for number in range(300)]
    tokenizer = caption_tokenizer(captions, config_of(name).text_config.model_type, 256)
    assert max(tokenizer.get_vocab().values()) < config_of(name).image_token_index == 255


@pytest.mark.parametrize("name", FAMILIES)
def test_a_caption_has_one_token_per_word_and_one_special_token(name):
    tokenizer = caption_tokenizer(["fresh bread", "sour cream"], config_of(name).text_config.model_type, 256)
    ids = tokenizer("sour bread")["input_ids"]
    assert len(ids) == 3
    assert ids[0 if name == OPT else 2] == tokenizer.eos_token_id
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.unk_token_id in tokenizer("sour plum")["input_ids"]


def prepared_batch(name=OPT, given="as-taught", max_length=50, words=(9, 20, 14), **settings):
    captions = SyntheticCaptionDataset(3, 28, 0)
    captions.texts = [" ".join(["bread"] * count) for count in words]
    collator = build_caption_collator(
        spec(model=name, input=given, max_length=max_length, **settings), config_of(name), captions.texts
    )
    return collator, collator([captions[0], captions[1], captions[2]])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_has_the_model_s_shapes_and_types(name):
    _, batch = prepared_batch(name)
    assert batch.keys() == {"pixel_values", "input_ids", "attention_mask", "labels"}
    assert (batch["pixel_values"].shape, batch["pixel_values"].dtype) == ((3, 3, 28, 28), torch.float32)
    for key in ("input_ids", "attention_mask", "labels"):
        assert (batch[key].shape, batch[key].dtype) == ((3, 21), torch.int64)
    assert batch["attention_mask"].sum(dim=1).tolist() == [10, 21, 15]
    assert torch.equal(batch["labels"], batch["input_ids"])


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("32-true", torch.float32), ("bf16-mixed", torch.float32), ("bf16-true", torch.bfloat16)],
)
def test_images_have_the_model_s_data_type(precision, dtype):
    assert prepared_batch(precision=precision)[1]["pixel_values"].dtype == dtype


def test_images_are_scaled_to_the_model_s_size_and_normalized():
    collator, _ = prepared_batch()
    pixels = collator([(Image.new("RGB", (300, 200), (255, 0, 0)), "bread")])["pixel_values"]
    assert pixels.shape == (1, 3, 28, 28)
    assert pixels[0, :, 5, 5].tolist() == pytest.approx(
        [(1 - 0.4815) / 0.2686, -0.4578 / 0.2613, -0.4082 / 0.2758], rel=1e-3
    )


def test_captions_longer_than_the_maximum_length_are_cut():
    assert prepared_batch(max_length=12)[1]["input_ids"].shape == (3, 12)


@pytest.mark.parametrize(("name", "labeled"), [(OPT, 25), (T5, 21)])
def test_the_input_with_image_begins_with_image_placeholders_that_have_no_labels(name, labeled):
    _, without_image = prepared_batch(name)
    _, batch = prepared_batch(name, "with-image")
    config = config_of(name)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (3, 25)
    assert (batch["input_ids"][:, : config.num_query_tokens] == config.image_token_index).all()
    assert (batch["attention_mask"][:, : config.num_query_tokens] == 1).all()
    assert torch.equal(batch["input_ids"][:, 4:], without_image["input_ids"])
    assert torch.equal(batch["attention_mask"][:, 4:], without_image["attention_mask"])
    assert torch.equal(batch["labels"][:, -21:], without_image["labels"])
    assert batch["labels"].shape == (3, labeled)
    assert (batch["labels"][:, :-21] == -100).all()


def lengths(count):
    return list(range(1, count + 1))


@given(count=st.integers(1, 60), batch_size=st.integers(1, 60), seed=st.integers(0, 5))
def test_an_epoch_consists_of_whole_batches_and_has_each_sample_at_most_once(count, batch_size, seed):
    if batch_size > count:
        with pytest.raises(InputError, match=f"batch_size = {batch_size}: the data set has only {count} samples"):
            SeededBatchSampler(lengths(count), batch_size, seed, None)
        return
    sampler = SeededBatchSampler(lengths(count), batch_size, seed, None)
    batches = list(sampler)
    taken = [index for batch in batches for index in batch]
    assert len(batches) == len(sampler) == count // batch_size
    assert {len(batch) for batch in batches} == {batch_size}
    assert len(set(taken)) == len(taken)
    assert set(taken) <= set(range(count))


def test_epochs_have_different_orders_that_are_reproducible():
    first, again, other = (SeededBatchSampler(lengths(40), 4, seed, None) for seed in (1, 1, 2))
    epochs = [list(first), list(first)]
    assert epochs == [list(again), list(again)]
    assert epochs[0] != epochs[1]
    assert epochs[0] != list(other)


@given(at=st.integers(0, 14), batch_size=st.integers(1, 8))
def test_the_requested_batch_of_the_first_epoch_has_the_samples_with_the_longest_captions(at, batch_size):
    count = batch_size * 5
    shuffled, longest = (
        SeededBatchSampler(lengths(count), batch_size, 0, None),
        SeededBatchSampler(lengths(count), batch_size, 0, at),
    )
    plain = [batch for _ in range(3) for batch in shuffled]
    moved = [batch for _ in range(3) for batch in longest]
    assert sorted(moved[at]) == list(range(count - batch_size, count))
    assert [*moved[:at], *moved[at + 1 :]] == [*plain[:at], *plain[at + 1 :]]


class ProcessCollator(CaptionCollator):
    """Collator that adds the process that prepared the batch."""

    def __call__(self, samples):
        return super().__call__(samples) | {"process": torch.tensor(os.getpid())}


def caption_loader(workers, longest_batch_index=None, **settings):
    row = spec(workers=workers, batch_size=4, train_samples=16, **settings)
    captions = open_captions(row, 28)
    plain = build_caption_collator(row, config_of(OPT), captions.texts)
    collator = ProcessCollator(**{name: getattr(plain, name) for name in CaptionCollator.__dataclass_fields__})
    return build_caption_loader(row, captions, collator, longest_batch_index)


@pytest.mark.parametrize(("requested", "started"), [(0, 0), (1, 1), (8, 2)])
def test_batches_are_prepared_in_worker_processes_of_the_loader(requested, started):
    loader = caption_loader(requested)
    batches = list(loader)
    processes = {batch.pop("process").item() for batch in batches}
    assert (loader.num_workers, len(processes)) == (started, max(started, 1))
    assert (os.getpid() in processes) == (started == 0)
    assert len(batches) == 4
    assert all(isinstance(tensor, torch.Tensor) for batch in batches for tensor in batch.values())
    assert {batch["pixel_values"].shape for batch in batches} == {(4, 3, 28, 28)}


def test_a_row_at_full_size_uses_all_loader_workers_that_its_settings_state():
    assert caption_loader(8, size="full").num_workers == 8


def test_batches_are_the_same_with_and_without_loader_workers():
    in_process, in_workers = caption_loader(0, longest_batch_index=1), caption_loader(2, longest_batch_index=1)
    for here, there in zip(in_process, in_workers, strict=True):
        assert torch.equal(here["input_ids"], there["input_ids"])
        assert torch.equal(here["pixel_values"], there["pixel_values"])


def test_loader_workers_are_not_forked_from_a_process_with_an_offloaded_optimizer(monkeypatch):
    started = []
    monkeypatch.setattr(forkserver, "ensure_running", lambda: started.append("server"))
    monkeypatch.setattr(multiprocessing.get_context("forkserver"), "set_forkserver_preload", started.append)
    assert loader_worker_context(spec()) is None
    assert loader_worker_context(spec(strategy="fsdp")) is None
    assert started == []
    context = loader_worker_context(spec(strategy="deepspeed_stage_2_offload"))
    assert context.get_start_method() == "forkserver"
    assert started == [["experiments.training.data.captions"], "server"]
