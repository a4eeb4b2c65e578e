"""Load text data sets: small records, tokenized by the byte tokenizer of tiny models or by a test tokenizer."""

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from litgpt.prompts import PromptStyle
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from experiments.errors import InputError
from experiments.suites.models import models as known_models
from experiments.training import rank
from experiments.training.data import corpora
from experiments.training.data import texts as text
from experiments.training.data.texts import open_texts
from tests.support.services.fake_hub import COMMIT
from tests.support.training.tiny_rows import GPT_NEO, spec

RECORDS = [
    {"instruction": f"Count to {number}", "input": "slowly" if number % 2 else "", "output": "one " * number}
    for number in range(1, 41)
]
REVIEWS = [{"text": "é" * length} for length in range(1, 41)]
BYTES = 256


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture
def whole_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable the cutting of texts for tiny models."""
    monkeypatch.setattr(text, "TINY_TOKENS", 512)


def write_json_lines(folder, records):
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, records)))


def array(folder, records):
    (folder / "train.json").write_text(json.dumps(records))


def table(folder, records):
    with (folder / "train.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, records[0])
        writer.writeheader()
        writer.writerows(records)


def parquet(folder, records):
    datasets.Dataset.from_list(records).to_parquet(str(folder / "train-00000-of-00001.parquet"))
    datasets.Dataset.from_list(records[:1]).to_parquet(str(folder / "test-00000-of-00001.parquet"))


def save_dataset(folder, records):
    datasets.Dataset.from_list(records).save_to_disk(str(folder))


def saved_by_split(folder, records):
    splits = {"test": datasets.Dataset.from_list(records[:1]), "train": datasets.Dataset.from_list(records)}
    datasets.DatasetDict(splits).save_to_disk(str(folder))


@pytest.fixture
def folder(tmp_path):
    (created := tmp_path / "set").mkdir()
    return created


def row(folder, dataset, **changes):
    settings = {"max_length": 512, "train_samples": None, "batch_size": 1}
    return spec(dataset=dataset, data=str(folder), **settings | changes)


def decode_bytes(ids):
    return corpora.byte_tokenizer().decode(ids)


@pytest.mark.usefixtures("whole_texts")
@pytest.mark.parametrize("keep", [write_json_lines, array, table, parquet, save_dataset, saved_by_split])
def test_a_record_becomes_the_same_prompt_and_answer_as_in_litgpt(folder, keep):
    keep(folder, RECORDS)
    texts: Any = open_texts(row(folder, "alpaca2k"), BYTES)
    style = PromptStyle.from_name("alpaca")
    prompts = [style.apply(record["instruction"], input=record["input"]) + record["output"] for record in RECORDS]
    assert [decode_bytes(text[:-1]) for text in texts] == prompts
    assert {int(text[-1]) for text in texts} == {corpora.byte_tokenizer().eos_token_id}
    assert {text.dtype for text in texts} == {torch.int64}
    assert texts.lengths == [len(text) for text in texts]


@pytest.mark.usefixtures("whole_texts")
def test_records_are_cut_and_split_as_in_litgpt(folder):
    write_json_lines(folder, RECORDS)
    texts: Any = open_texts(row(folder, "alpaca2k", validation=0.5, max_length=130), BYTES)
    split = datasets.Dataset.from_list(RECORDS).train_test_split(test_size=0.5, seed=42)["train"]
    assert len(texts) == 20
    assert max(texts.lengths) == 130
    style = PromptStyle.from_name("alpaca")
    for ids, record in zip(texts, split, strict=True):
        assert (style.apply(record["instruction"], **record) + record["output"]).startswith(decode_bytes(ids[:129]))


def test_texts_for_tiny_models_are_short(folder):
    write_json_lines(folder, REVIEWS)
    assert max(open_texts(row(folder, "imdb", max_length=16), BYTES).lengths) == text.TINY_TOKENS


@pytest.mark.usefixtures("whole_texts")
@pytest.mark.parametrize("keep", [write_json_lines, table, parquet])
def test_a_review_is_split_into_samples_without_losing_tokens(folder, keep):
    keep(folder, REVIEWS)
    texts: Any = open_texts(row(folder, "imdb", max_length=16), BYTES)
    assert max(texts.lengths) == 16
    assert sum(texts.lengths) == sum(len(review["text"].encode()) for review in REVIEWS)
    assert len(open_texts(row(folder, "imdb", max_length=16, validation=7), BYTES)) == len(texts) - 7


def test_texts_that_do_not_fill_an_optimizer_step_are_left_out(folder):
    write_json_lines(folder, RECORDS)
    assert len(open_texts(row(folder, "alpaca2k", batch_size=3, accumulate=2), BYTES)) == 36
    assert len(open_texts(row(folder, "alpaca2k", train_samples=10, batch_size=5), BYTES)) == 10
    with pytest.raises(InputError, match=r"^train_samples = 50: alpaca2k has only 40 training texts$"):
        open_texts(row(folder, "alpaca2k", train_samples=50), BYTES)


def test_texts_of_constant_length_are_random_even_if_the_data_folder_has_texts(folder):
    assert set(open_texts(row(folder, "constant"), BYTES).lengths) == {512}


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"text": "a"}], "alpaca2k needs the columns instruction and output, the records have text$"),
        (
            [{"instruction": "a", "output": None}, {"instruction": "a", "output": "b"}],
            "'output' must be a text in every record of alp",
        ),
        ([{"instruction": 1, "output": "b"}], "'instruction' must be a text in every record of alpaca2k$"),
    ],
)
def test_records_without_the_required_columns_are_rejected(folder, records, message):
    write_json_lines(folder, records)
    with pytest.raises(InputError, match=message):
        open_texts(row(folder, "alpaca2k"), BYTES)


def test_a_corrupt_file_is_rejected_in_one_line(folder):
    (folder / "train.parquet").write_text("no table")
    with pytest.raises(InputError, match="cannot be read as imdb") as rejected:
        open_texts(row(folder, "imdb"), BYTES)
    assert "\n" not in str(rejected.value)


def published_tokenizer(folder):
    """A model's tokenizer with a token for each of a few words."""
    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "one": 2, "good": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="<unk>").save_pretrained(folder)


def full_size_spec(tmp_path, folder, dataset):
    published_tokenizer(tmp_path / "model")
    own = known_models()[GPT_NEO].model_copy(update={"hub": str(tmp_path / "model")})
    return row(folder, dataset, own=own, size="full", max_length=8)


def test_a_full_size_row_uses_the_model_s_tokenizer(tmp_path, folder):
    write_json_lines(folder, [{"text": "good one good"}])
    texts: Any = open_texts(full_size_spec(tmp_path, folder, "imdb"), 100)
    assert [text.tolist() for text in texts] == [[3, 2, 3]]


def test_rows_of_litgpt_use_the_model_s_tokenizer(tmp_path, folder):
    write_json_lines(folder, [{"instruction": "one", "output": "good"}])
    row = full_size_spec(tmp_path, folder, "alpaca2k")
    row = row.model_copy(update={"settings": row.settings.model_copy(update={"max_length": 512})})
    assert open_texts(row, 100)[0].tolist()[-2:] == [3, 1]


def test_a_tokenizer_of_another_model_is_rejected(tmp_path, folder):
    write_json_lines(folder, [{"text": "good one good"}])
    message = r"^model 'blip2-opt-2.7b': has a vocabulary of 3 tokens, but its tokenizer uses the token id 3$"
    with pytest.raises(InputError, match=message):
        open_texts(full_size_spec(tmp_path, folder, "imdb"), 3)


def test_the_data_set_s_commit_is_recorded(web, folder, tmp_path):
    parquet(folder, REVIEWS)
    web.repos["datasets/stanfordnlp/imdb"] = folder
    settings = {"engine": "hf_trainer", "model": GPT_NEO, "max_steps": 1}
    assert rank.run_rank(row("hub", "imdb", max_length=16, **settings), tmp_path).data_commit == COMMIT
