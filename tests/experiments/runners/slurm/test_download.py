"""Downloads of a folder of this machine: which files in which order, over reliable and unreliable connections."""

import io
import os
from contextlib import contextmanager
from pathlib import Path

import pytest

from experiments.results.schema import CHECKPOINTS_FOLDER, PROGRESS_FILE, RESULT_FILE
from experiments.runners.progress import download_progress
from experiments.runners.slurm import download as module
from experiments.runners.slurm.download import ChecksumMismatch, TransferProgress, download_folder, download_growing
from provision.errors import LineCut
from provision.ssh.shell import LocalShell
from tests.support import rows

FILES = {RESULT_FILE: b"{}", "log.txt": b"said\n", "rank-0/log.txt": b"", "it's a name.csv": os.urandom(300_000)}


class Bad(LocalShell):
    """This machine behind a connection that for ``bad`` streams drops, or damages a byte, after ``good`` bytes."""

    def __init__(self, bad: int, good: int, cut: bool) -> None:
        self.bad, self.good, self.cut = bad, good, cut
        self.came = 0

    @contextmanager
    def reading(self, command, **options):
        self.bad, bad = self.bad - 1, self.bad > 0
        with super().reading(command, **options) as stream:
            came = stream.read()
            if bad and self.cut:
                came = came[: self.good]
            elif bad:
                came = came[: self.good] + bytes([came[self.good] ^ 1]) + came[self.good + 1 :]
            self.came += len(came)
            yield io.BytesIO(came)
        if bad and self.cut:
            raise LineCut("cut")


@pytest.fixture
def there(tmp_path):
    for name, content in FILES.items():
        path = tmp_path / "there" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "there"


def held(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_files_come_and_what_is_here_is_not_fetched_again(there, tmp_path):
    assert download_folder(LocalShell(), str(there), tmp_path / "here") == len(FILES)
    assert held(tmp_path / "here") == FILES
    assert download_folder(LocalShell(), str(there), tmp_path / "here") == 0
    (there / "log.txt").write_bytes(b"SAID\n")
    assert download_folder(LocalShell(), str(there), tmp_path / "here") == 1
    assert held(tmp_path / "here")["log.txt"] == b"SAID\n"


def test_a_folder_that_was_never_made_has_nothing(tmp_path):
    assert download_folder(LocalShell(), str(tmp_path / "nothing"), tmp_path / "here") == 0


def test_checkpoints_and_what_is_only_for_the_moment_stay_there(there, tmp_path):
    (there / CHECKPOINTS_FOLDER).mkdir()
    for name in (f"{CHECKPOINTS_FOLDER}/large", PROGRESS_FILE, "half.part"):
        (there / name).write_bytes(b"x")
    download_folder(LocalShell(), str(there), tmp_path / "here")
    assert held(tmp_path / "here") == FILES


def test_the_result_is_the_last_to_appear(there, tmp_path, monkeypatch):
    order = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: (order.append(to.name), replace(self, to)))
    download_folder(LocalShell(), str(there), tmp_path / "here")
    assert order[-1] == RESULT_FILE
    assert len(order) == len(FILES)


def test_what_is_spoiled_on_the_way_is_fetched_again(there, tmp_path):
    shell = Bad(bad=1, good=100_000, cut=False)
    assert download_folder(shell, str(there), tmp_path / "here") == len(FILES)
    assert held(tmp_path / "here") == FILES
    assert shell.came < 2 * 400_000


def test_what_is_spoiled_each_time_is_given_up_and_no_half_is_left(there, tmp_path):
    with pytest.raises(ChecksumMismatch, match=r"checksum mismatch in each download of it's a name\.csv from "):
        download_folder(Bad(bad=9, good=100_000, cut=False), str(there), tmp_path / "here")
    assert "it's a name.csv" not in held(tmp_path / "here")


def test_a_row_whose_files_are_spoiled_has_no_result(there, tmp_path):
    with pytest.raises(ChecksumMismatch):
        download_folder(Bad(bad=9, good=100_000, cut=False), str(there), tmp_path / "here")
    assert RESULT_FILE not in held(tmp_path / "here")


def test_a_large_file_goes_on_where_the_line_was_cut(there, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RESUMED_BYTES", 1 << 20)
    (there / "large").write_bytes(os.urandom(8 << 20))
    shell = Bad(bad=1, good=6 << 20, cut=True)
    with pytest.raises(LineCut):
        download_folder(shell, str(there), tmp_path / "here")
    assert RESULT_FILE not in held(tmp_path / "here")
    shell.came = 0
    download_folder(shell, str(there), tmp_path / "here")
    assert held(tmp_path / "here") == {**FILES, "large": (there / "large").read_bytes()}
    assert shell.came < 4 << 20


def test_no_room_here_is_said(there, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "log.txt.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        download_folder(LocalShell(), str(there), tmp_path / "here")


def test_how_far_it_is_is_told_in_files_and_bytes(there, tmp_path):
    told = []
    download_folder(LocalShell(), str(there), tmp_path / "here", told.append)
    assert [one.files for one in told] == [1, 2, 3, 4]
    assert (told[-1].bytes, told[-1].of_bytes) == (sum(map(len, FILES.values())),) * 2
    assert told[-1].left_s == 0


def test_a_glance_brings_what_grew_and_never_a_result(there, tmp_path):
    here = tmp_path / "here"
    download_growing(LocalShell(), [(str(there), here)], ["log.txt"])
    assert held(here) == {"log.txt": b"said\n"}
    with (there / "log.txt").open("ab") as log:
        log.write(b"more\n")
    download_growing(LocalShell(), [(str(there), here), (str(tmp_path / "nothing"), here)], ["log.txt"])
    assert held(here) == {"log.txt": b"said\nmore\n"}


def test_what_had_come_before_the_line_was_cut_is_not_fetched_again(there, tmp_path):
    shell = Bad(bad=1, good=310_000, cut=True)
    with pytest.raises(LineCut):
        download_folder(shell, str(there), tmp_path / "here")
    assert "it's a name.csv" not in held(tmp_path / "here")
    shell.came = 0
    download_folder(shell, str(there), tmp_path / "here")
    assert held(tmp_path / "here") == FILES
    assert shell.came < 100_000


@pytest.mark.parametrize("name", ["two\nlines", "back\\slash", "-r", "\\n"])
def test_a_file_may_have_any_name(there, tmp_path, name):
    (there / name).write_bytes(b"x")
    download_folder(LocalShell(), str(there), tmp_path / "here")
    assert held(tmp_path / "here") == {**FILES, name: b"x"}


def test_checksums_are_made_there_without_openssl_too(there, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SUM", module.SUM.replace("openssl", "nothing-of-that-name"))
    assert download_folder(LocalShell(), str(there), tmp_path / "here") == len(FILES)
    assert held(tmp_path / "here") == FILES


def test_how_far_a_pull_is_is_shown_in_files_bytes_and_time():
    transfer = TransferProgress(3, 12, 4_000_000, 80_000_000, 61.0)
    assert download_progress(rows.spec("a"), transfer) == "a: downloading, 3 of 12 files, 4 of 80 MB, 1:01 left"
