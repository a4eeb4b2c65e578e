"""Read real texts for language models from a published data set or a folder, and tokenize them for the row's model."""

from functools import partial
from pathlib import Path
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
from experiments.training.data.hub import TOKENIZER_FILES, VersionedFolder, fetch_files
from experiments.training.failures import first_line
from provision.temporary import TemporaryFolder

HUB_IDS = {"alpaca2k": Alpaca2k.repo_id, "imdb": "stanfordnlp/imdb"}
REQUIRED_COLUMNS = {"alpaca2k": ("instruction", "output"), "imdb": ("text",)}
SPLIT_SEED = 42  # the same seed as in litgpt's Alpaca2k and in CSC's guide


def read_texts(spec: RowSpec) -> tuple[list[torch.Tensor], str | None]:
    """Return the row's training texts, each (tokens,) int64, and the data set's commit on the hub (None if unknown).

    A text of alpaca2k is a record's prompt in LitGPT's prompt style, followed by the answer, and is cut to max_length
    tokens. An imdb review longer than max_length becomes several texts. At full size, the tokenizer of the row's model
    is used. For tiny models, each byte is a token. Raises InputError if texts or tokenizer cannot be loaded.
    """
    source = fetch_texts(spec.settings.dataset) if spec.data == "hub" else VersionedFolder(Path(spec.data))
    records = read_records(spec.settings.dataset, source.folder)
    with TemporaryFolder("tokenizer") as scratch:
        if spec.size == "tiny":
            byte_tokenizer().save_pretrained(scratch)
        folder = (
            scratch
            if spec.size == "tiny"
            else fetch_files(spec.base_model.hub, TOKENIZER_FILES, "the tokenizer").folder
        )
        texts = tokenize(records, spec.settings, folder)
    return texts, source.commit


def fetch_texts(dataset: str, **options: Any) -> VersionedFolder:
    """Download the files of a data set. Raises InputError if the download fails."""
    return fetch_files(HUB_IDS[dataset], None, "the texts", "dataset", **options)


def read_records(dataset: str, folder: Path) -> datasets.Dataset:
    """Return the records in a folder. If the folder has splits, return the split 'train', or else the first split.

    Raises InputError if the records cannot be read or lack a column of the data set.
    """
    source = str(folder)
    try:
        saved = text_format(folder) == "saved"
        loaded = datasets.load_from_disk(source) if saved else datasets.load_dataset(source)
    except Exception as error:
        raise InputError(f"{source}: cannot be read as {dataset} ({first_line(error)})") from None
    splits = loaded if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
    records = splits["train"] if "train" in splits else next(iter(splits.values()))
    for column in REQUIRED_COLUMNS[dataset]:
        if column not in records.column_names:
            actual, required = ", ".join(records.column_names), " and ".join(REQUIRED_COLUMNS[dataset])
            raise InputError(f"{source}: {dataset} needs the columns {required}, the records have {actual}")
        if not all(isinstance(value, str) for value in records[column]):
            raise InputError(f"{source}: {column!r} must be a text in every record of {dataset}")
    return records


def tokenize(records: datasets.Dataset, settings: Settings, tokenizer: Path) -> list[torch.Tensor]:
    """Return the token ids of the training texts, each (tokens,) int64. tokenizer: folder of the tokenizer."""
    if settings.dataset == "alpaca2k":
        samples = SFTDataset(
            train_split(records, settings),
            LitgptTokenizer(tokenizer),
            Alpaca2k.prompt_style,
            settings.max_length,
            Alpaca2k.mask_prompt,
        )
        return [samples[index]["input_ids"] for index in range(len(samples))]
    chunks = records.map(
        partial(chunk_reviews, tokenizer=AutoTokenizer.from_pretrained(tokenizer), max_tokens=settings.max_length),
        batched=True,
        remove_columns=records.column_names,
        keep_in_memory=True,
    )
    return [torch.tensor(ids) for ids in train_split(chunks, settings)["input_ids"]]


def chunk_reviews(reviews: dict[str, list[str]], tokenizer: Any, max_tokens: int) -> dict[str, list[list[int]]]:
    """Return the token ids of reviews, split into samples of at most ``max_tokens`` tokens. No token is dropped."""
    tokens = tokenizer(reviews["text"], truncation=True, max_length=max_tokens, return_overflowing_tokens=True)
    return {"input_ids": tokens["input_ids"]}


def train_split(samples: datasets.Dataset, settings: Settings) -> datasets.Dataset:
    """Return the samples without the validation split; samples and order are the same as in the lab."""
    if not settings.validation:
        return samples
    size = settings.validation if settings.validation < 1 else int(settings.validation)
    return samples.train_test_split(test_size=size, seed=SPLIT_SEED)["train"]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token for each byte; byte FF, which occurs in no text, marks the end of a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({byte: number for number, byte in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=chr(0xFF))
