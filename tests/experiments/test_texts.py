"""Folders of texts are told by what lies in them."""

import pytest

from experiments.texts import format_of


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
def test_a_folder_is_told_by_its_files(tmp_path, file, kind):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.touch()
    assert format_of(tmp_path) == kind
