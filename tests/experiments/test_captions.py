"""Folders of captioned images are told by what lies in them."""

import pytest

from experiments.captions import format_of


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
def test_a_folder_is_told_by_its_files(tmp_path, file, kind):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.touch()
    assert format_of(tmp_path) == kind
