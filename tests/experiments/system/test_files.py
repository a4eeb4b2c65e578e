"""Atomic writes: of several writers at once, of writers that fail, and through links."""

import os
import threading

import pytest

from experiments.system.files import write_atomically

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


@pytest.mark.parametrize("problem", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_ends_early_leaves_no_partial_file(tmp_path, monkeypatch, problem):
    def fail(*_):
        raise problem

    write_atomically(tmp_path / "entry.json", "old")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(type(problem)):
        write_atomically(tmp_path / "entry.json", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("entry.json", "old")]


def test_a_text_that_cannot_be_encoded_leaves_no_partial_file(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "entry.json", "\udc80")
    assert list(tmp_path.iterdir()) == []
