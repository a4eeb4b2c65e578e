"""Atomic writes, also of several writers at once and of writers that fail; the limits of a cache folder."""

import os
import threading

import pytest

from experiments.system import files
from experiments.system.files import write_atomically, write_to_cache

SIZE = 100_000


def test_several_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    path, errors, damaged = tmp_path / "entry.json", list[OSError](), list[str]()
    write_atomically(path, "x" * SIZE)

    def write(letter):
        try:
            for _ in range(100):
                write_atomically(path, letter * SIZE)
        except OSError as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        found = path.read_text()
        if found != found[:1] * SIZE:
            damaged.append(found)
    for writer in writers:
        writer.join()
    assert (errors, damaged) == ([], [])
    assert list(tmp_path.iterdir()) == [path]


def test_each_write_has_a_partial_file_of_its_own(tmp_path, monkeypatch):
    partial_files, replace = [], os.replace

    def record(source, target):
        partial_files.append(str(source))
        replace(source, target)

    monkeypatch.setattr(os, "replace", record)
    for _ in range(2):
        write_atomically(tmp_path / "entry.json", "text")
    assert len(set(partial_files)) == 2
    assert all(name.endswith(".part") and f".{os.getpid()}-" in name for name in partial_files)


@pytest.mark.parametrize("letter", ["x", "ä", "😀"])
def test_a_file_with_the_longest_possible_name_can_be_written(tmp_path, letter):
    path = tmp_path / (255 // len(letter.encode()) * letter)
    write_atomically(path, "text")
    assert path.read_text() == "text"


@pytest.mark.parametrize("problem", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_ends_early_leaves_no_partial_file(tmp_path, monkeypatch, problem):
    def fail(*_):
        raise problem

    write_atomically(tmp_path / "entry.json", "old")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(type(problem)) as raised:
        write_atomically(tmp_path / "entry.json", "new")
    assert getattr(raised.value, "filename", None) == (str(tmp_path / "entry.json") if problem.args else None)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("entry.json", "old")]


def test_a_text_that_cannot_be_encoded_leaves_no_partial_file(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "entry.json", "\udc80")
    assert list(tmp_path.iterdir()) == []


def fill_cache(folder, count, size=1):
    """Write cached files of these ages: the file 0 is the oldest."""
    for number in range(count):
        (folder / f"{number}.json").write_text("x" * size)
        os.utime(folder / f"{number}.json", (number, number))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_cache_keeps_the_newest_files(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_CACHED_FILES", 3)
    fill_cache(tmp_path, 5)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("0.json")
    write_to_cache(tmp_path / "new.json", "text")
    assert names(tmp_path) == ["3.json", "4.json", "folder", "link", "new.json"]


def test_a_cache_keeps_as_many_bytes_as_its_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_CACHED_BYTES", 100)
    fill_cache(tmp_path, 5, size=40)
    write_to_cache(tmp_path / "new.json", "x" * 30)
    assert names(tmp_path) == ["4.json", "new.json"]
    write_to_cache(tmp_path / "large.json", "x" * 200)
    assert names(tmp_path) == ["large.json"]


def test_the_file_that_is_written_stays_although_the_clock_of_others_is_ahead(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_CACHED_FILES", 1)
    fill_cache(tmp_path, 1)
    os.utime(tmp_path / "0.json", (2**33, 2**33))
    write_to_cache(tmp_path / "new.json", "text")
    assert names(tmp_path) == ["new.json"]


def test_a_file_of_the_cache_that_cannot_be_removed_is_no_error(tmp_path, monkeypatch):
    def fail(*_):
        raise PermissionError

    monkeypatch.setattr(files, "MAX_CACHED_FILES", 1)
    fill_cache(tmp_path, 2)
    monkeypatch.setattr(os, "scandir", fail)
    write_to_cache(tmp_path / "new.json", "text")
    assert names(tmp_path) == ["0.json", "1.json", "new.json"]
