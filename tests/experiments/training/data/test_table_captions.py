"""Captioned images stored by the library datasets."""

from pathlib import Path

import datasets
import numpy as np
import pytest

from experiments.errors import InputError
from experiments.training.data.captions import TableCaptionDataset


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def captioned_images(text: str = "text") -> datasets.Dataset:
    images = [np.full((8, 8, 3), 40 * shade, dtype=np.uint8) for shade in range(5)]
    features = datasets.Features({"image": datasets.Image(), text: datasets.Value("string")})
    return datasets.Dataset.from_dict({"image": images, text: [f"plate {n}" for n in range(5)]}, features=features)


def save_dataset(folder: Path) -> Path:
    captioned_images().save_to_disk(str(folder))
    return folder


def saved_by_split(folder: Path) -> Path:
    datasets.DatasetDict(train=captioned_images("caption")).save_to_disk(str(folder))
    return folder


def parquet(folder: Path) -> Path:
    (folder / "data").mkdir(parents=True)
    captioned_images().to_parquet(str(folder / "data" / "train-00000-of-00001.parquet"))
    captioned_images().select([0]).to_parquet(str(folder / "data" / "test-00000-of-00001.parquet"))
    return folder


@pytest.mark.parametrize("make", [save_dataset, saved_by_split, parquet])
def test_images_and_captions_keep_their_order(tmp_path: Path, make) -> None:
    captions = TableCaptionDataset(make(tmp_path / "set"), 4)
    assert captions.texts == ["plate 0", "plate 1", "plate 2", "plate 3"]
    image, text = captions[2]
    assert (image.mode, image.size, image.getpixel((0, 0)), text) == ("RGB", (8, 8), (80, 80, 80), "plate 2")


def test_too_few_images_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has 5 captioned images, the row trains on 6"):
        TableCaptionDataset(save_dataset(tmp_path / "set"), 6)


def test_the_error_for_a_table_without_the_required_columns_names_its_columns(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a"], "label": [1]}).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(InputError, match="needs a column image, and a column text or caption; has text, label"):
        TableCaptionDataset(tmp_path / "set", 1)


def test_the_error_for_a_column_with_paths_of_images_names_the_required_type(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a"], "image": ["a.png"]}).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(InputError, match="the column image has no values of the type Image of the library datasets"):
        TableCaptionDataset(tmp_path / "set", 1)


def test_a_corrupt_file_is_rejected_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_text("no table")
    with pytest.raises(InputError, match="cannot be read as captioned images") as rejected:
        TableCaptionDataset(tmp_path, 1)
    assert "\n" not in str(rejected.value)
