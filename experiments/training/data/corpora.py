"""Real texts for language models: records of a published set or of a folder, as token ids of the row's model."""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import torch
from litgpt.data import Alpaca2k, SFTDataset
from litgpt.tokenizer import Tokenizer as LitgptTokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from experiments.errors import InputError
from experiments.inputs.formats import text_format
from experiments.suites.row_spec import RowSpec
from experiments.suites.settings import Settings
from experiments.training.data.hub import TOKENIZER, Published, fetch
from experiments.training.failures import first_line

HUB = {"alpaca2k": Alpaca2k.repo_id, "imdb": "stanfordnlp/imdb"}
COLUMNS = {"alpaca2k": ("instruction", "output"), "imdb": ("text",)}
SPLIT_SEED = 42  # of litgpt's Alpaca2k, and of the guide


def read_texts(spec: RowSpec) -> tuple[list[torch.Tensor], str | None]:
    """The row's texts beside its validation, each (tokens,) int64, and the commit of a set on the hub where it is told.

    alpaca2k is built by LitGPT: prompt style and answer of a record, cut to max_length. An imdb review that is longer
    than max_length becomes several samples. At full size tokens are those of the row's model; in miniature, which knows
    256 of them, each byte is one. Raises InputError when texts or tokenizer cannot be had.
    """
    source = published_texts(spec.settings.dataset) if spec.data == "hub" else Published(Path(spec.data))
    records = read_records(spec.settings.dataset, source.folder)
    with TemporaryDirectory() as made:
        if spec.size == "tiny":
            byte_tokenizer().save_pretrained(made)
        folder = Path(made) if spec.size == "tiny" else fetch(spec.base_model.hub, TOKENIZER, "the tokenizer").folder
        found = tokenized(records, spec.settings, folder)
    return found, source.commit


def published_texts(dataset: str, **options: Any) -> Published:
    """The files of a data set on the hub; InputError when they cannot be had."""
    return fetch(HUB[dataset], None, "the texts", "dataset", **options)


def read_records(dataset: str, folder: Path) -> datasets.Dataset:
    """The records of a folder, of the training split where splits are named.

    Raises InputError when they cannot be read, or lack a column that the data set has.
    """
    source = str(folder)
    try:
        saved = text_format(folder) == "saved"
        found = datasets.load_from_disk(source) if saved else datasets.load_dataset(source)
    except Exception as error:
        raise InputError(f"{source}: cannot be read as {dataset} ({first_line(error)})") from None
    splits = found if isinstance(found, datasets.DatasetDict) else {"train": found}
    records = splits["train"] if "train" in splits else next(iter(splits.values()))
    for column in COLUMNS[dataset]:
        if column not in records.column_names:
            has, needs = ", ".join(records.column_names), " and ".join(COLUMNS[dataset])
            raise InputError(f"{source}: {dataset} needs {needs}, its records have {has}")
        if not all(isinstance(value, str) for value in records[column]):
            raise InputError(f"{source}: {column!r} of each record of {dataset} must be a text")
    return records


def tokenized(records: datasets.Dataset, settings: Settings, tokenizer: Path) -> list[torch.Tensor]:
    """The samples of a data set's records beside its validation, by the tokenizer in that folder."""
    if settings.dataset == "alpaca2k":
        prompted = SFTDataset(
            train_split(records, settings),
            LitgptTokenizer(tokenizer),
            Alpaca2k.prompt_style,
            settings.max_length,
            Alpaca2k.mask_prompt,
        )
        return [prompted[index]["input_ids"] for index in range(len(prompted))]
    cut = records.map(
        partial(chunks, tokenizer=AutoTokenizer.from_pretrained(tokenizer), longest=settings.max_length),
        batched=True,
        remove_columns=records.column_names,
        keep_in_memory=True,
    )
    return [torch.tensor(ids) for ids in train_split(cut, settings)["input_ids"]]


def chunks(reviews: dict[str, list[str]], tokenizer: Any, longest: int) -> dict[str, list[list[int]]]:
    """The tokens of reviews in samples of at most ``longest``; none is lost."""
    found = tokenizer(reviews["text"], truncation=True, max_length=longest, return_overflowing_tokens=True)
    return {"input_ids": found["input_ids"]}


def train_split(samples: datasets.Dataset, settings: Settings) -> datasets.Dataset:
    """The samples that are trained on, in the order of the material's split."""
    if not settings.validation:
        return samples
    size = settings.validation if settings.validation < 1 else int(settings.validation)
    return samples.train_test_split(test_size=size, seed=SPLIT_SEED)["train"]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that knows the 256 values of a byte, each a token; the byte FF, which no text has, ends one."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({byte: number for number, byte in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=chr(0xFF))
