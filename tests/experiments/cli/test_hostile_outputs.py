"""Output files that are a FIFO, a full device or a folder: the command prints one line and never waits."""

import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from experiments.cli.app import main
from experiments.errors import InputError
from experiments.report.archive import write_zip
from experiments.system.files import open_output
from tests.support.results.evidence import EVIDENCE

pytestmark = pytest.mark.timeout(120)
STORED = EVIDENCE / "single_gpu_blip2-a100_80gb-full-verdict"
WRITERS = (
    "evaluate run --csv @",
    "compare run run --page @",
    "history --database h.db --csv @",
    "history --database h.db --page @",
)
REASONS = {
    "fifo": "No such device or address",
    "folder": "Is a directory",
    "/dev/full": "No space left on device",
    "h.db/x": "Not a directory",
}


@pytest.fixture
def folder_with_outputs(tmp_path, monkeypatch, machine):
    """The current folder: a run, a history of it, a FIFO that nobody reads, and a folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(STORED, tmp_path / "run")
    assert main(["history", "record", "run", "--database", "h.db"]) == 0
    os.mkfifo("fifo")
    (tmp_path / "folder").mkdir()
    return tmp_path / "run"


@pytest.mark.parametrize("target", REASONS)
@pytest.mark.parametrize("line", WRITERS)
def test_an_output_that_cannot_be_written_is_reported_in_one_line(folder_with_outputs, capsys, line, target):
    capsys.readouterr()
    assert main(line.replace("@", target).split()) == 2
    option = line.split()[-2]
    assert capsys.readouterr().err == f"testbed: {option} {target}: cannot be written ({REASONS[target]})\n"


@pytest.mark.parametrize("target", ["fifo", "folder", "/dev/full"])
@pytest.mark.parametrize("line", ["history record run --database @", "history --database @"])
def test_a_database_that_is_not_a_regular_file_is_rejected(folder_with_outputs, capsys, line, target):
    capsys.readouterr()
    assert main(line.replace("@", target).split()) == 2
    assert capsys.readouterr().err == f"testbed: --database {target}: not a regular file\n"


def test_a_fifo_that_another_program_reads_gets_the_output(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    with open_output(tmp_path / "fifo") as file:
        file.write("text")
    assert os.read(reader, 10) == b"text"
    os.close(reader)


def test_file_names_that_are_not_utf_8_are_written_unchanged(tmp_path):
    with open_output(tmp_path / "out.csv") as file:
        file.write(os.fsdecode(b"x\xe9"))
    assert (tmp_path / "out.csv").read_bytes() == b"x\xe9"


def test_an_output_is_appended_or_replaced(tmp_path):
    for append in (False, True, True):
        with open_output(tmp_path / "out", append=append) as file:
            file.write("x")
    assert (tmp_path / "out").read_text() == "xxx"
    with (
        pytest.raises(InputError, match="--summary /dev/full: cannot be written"),
        open_output(Path("/dev/full"), "--summary", append=True) as file,
    ):
        file.write("x")


@pytest.mark.parametrize("kind", ["fifo", "link"])
def test_an_archive_is_not_written_through_a_link_or_fifo_at_its_path(tmp_path, kind):
    partial, mine = tmp_path / "run.zip.part", tmp_path / "mine"
    mine.write_text("mine")
    os.mkfifo(partial) if kind == "fifo" else partial.symlink_to(mine)
    assert write_zip(tmp_path / "run.zip", {"a": b"a"}).stat().st_size > 100
    assert mine.read_text() == "mine"


def test_a_history_that_is_locked_by_another_program_is_reported_in_one_line(folder_with_outputs, capsys, monkeypatch):
    monkeypatch.setattr("experiments.history.database.sqlite3.connect", _with_short_timeout(sqlite3.connect))
    other = sqlite3.connect("h.db")
    other.execute("BEGIN EXCLUSIVE")
    capsys.readouterr()
    assert main(["history", "record", "run", "--database", "h.db"]) == 2
    assert "h.db" in (error := capsys.readouterr().err)
    assert (error.count("\n"), "locked" in error) == (1, True)
    other.close()


def _with_short_timeout(connect):
    return lambda path: connect(path, timeout=0.1)
