"""Folders of captioned images, and of texts, are recognized by their files."""

import pytest

from experiments.inputs.formats import caption_format, text_format


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("metadata.jsonl", "metadata"),
        ("metadata.csv", "metadata"),
        ("dataset_info.json", "saved"),
        ("dataset_dict.json", "saved"),
        ("data/train-00000-of-00001.parquet", "parquet"),
        ("captions.txt", None),
    ],
)
def test_a_folder_of_captions_is_recognized_by_its_files(tmp_path, file, kind):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.touch()
    assert caption_format(tmp_path) == kind


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("alpaca.json", "tables"),
        ("train.jsonl", "tables"),
        ("reviews.csv", "tables"),
        ("data/train-00000-of-00001.parquet", "tables"),
        ("dataset_info.json", "saved"),
        ("metadata.jsonl", None),
        ("set/train.jsonl", None),
        ("metadata.csv", None),
        ("readme.txt", None),
    ],
)
def test_a_folder_of_texts_is_recognized_by_its_files(tmp_path, file, kind):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.touch()
    assert text_format(tmp_path) == kind
