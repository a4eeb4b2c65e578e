"""Downloads of the results in a folder: which files, in which order, over reliable and unreliable connections."""

import io
import os
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.results.schema import CHECKPOINTS_FOLDER, PROGRESS_FILE, RESULT_FILE
from experiments.runners.progress import download_progress
from experiments.runners.slurm import download as module
from experiments.runners.slurm.download import (
    BadListing,
    ChecksumMismatch,
    RemoteFile,
    TransferProgress,
    download_folder,
    download_growing_files,
)
from provision.errors import ConnectionDropped
from provision.ssh.shell import LocalShell
from tests.support.runners import rows
from tests.support.runners.fake_cluster import DroppingShell
from tests.support.runners.fake_time import FakeTime

FILES = {RESULT_FILE: b"{}", "log.txt": b"said\n", "rank-0/log.txt": b"", "it's a name.csv": os.urandom(300_000)}


class UnreliableShell(LocalShell):
    """A shell on this machine whose first ``bad`` streams drop, or change a byte, after ``good`` bytes."""

    def __init__(self, bad: int, good: int, drops: bool) -> None:
        self.bad, self.good, self.drops = bad, good, drops
        self.bytes = 0

    @contextmanager
    def open_output(self, command, **options):
        self.bad, bad = self.bad - 1, self.bad > 0
        with super().open_output(command, **options) as stream:
            content = stream.read()
            if bad and self.drops:
                content = content[: self.good]
            elif bad:
                content = content[: self.good] + bytes([content[self.good] ^ 1]) + content[self.good + 1 :]
            self.bytes += len(content)
            yield io.BytesIO(content)
        if bad and self.drops:
            raise ConnectionDropped("cut")


@pytest.fixture
def remote(tmp_path):
    for name, content in FILES.items():
        path = tmp_path / "there" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "there"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class HostileShell(LocalShell):
    """A shell on this machine that adds a file to each list of files."""

    def __init__(self, entry: str) -> None:
        self.entry = entry

    def run(self, command, **options):
        done = super().run(command, **options)
        return replace(done, out=f"{done.out}{self.entry}\0") if "-printf" in command else done


@pytest.mark.parametrize(
    "entry", ["3 ../outside", "3 /tmp/outside", "3 rank-0/../../outside", "x log.txt", "3 ", "..."]
)
def test_nothing_is_downloaded_if_the_list_of_files_has_one_outside_of_the_folder(remote, tmp_path, entry):
    for download in (
        lambda: download_folder(HostileShell(entry), str(remote), tmp_path / "here"),
        lambda: download_growing_files(HostileShell(entry), [(str(remote), tmp_path / "here")], ["log.txt"]),
    ):
        with pytest.raises(BadListing, match=r"which is not a file in this folder"):
            download()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]


def test_all_files_are_downloaded_and_unchanged_ones_only_once(remote, tmp_path):
    assert download_folder(LocalShell(), str(remote), tmp_path / "here") == len(FILES)
    assert contents(tmp_path / "here") == FILES
    assert download_folder(LocalShell(), str(remote), tmp_path / "here") == 0
    (remote / "log.txt").write_bytes(b"SAID\n")
    assert download_folder(LocalShell(), str(remote), tmp_path / "here") == 1
    assert contents(tmp_path / "here")["log.txt"] == b"SAID\n"


def test_a_download_continues_if_the_connection_drops_between_two_commands(remote, tmp_path):
    download_growing_files(DroppingShell(), [(str(remote), tmp_path / "here")], ["log.txt"])
    assert download_folder(DroppingShell(), str(remote), tmp_path / "here") == len(FILES) - 1


def test_downloading_a_missing_folder_downloads_no_files(tmp_path):
    assert download_folder(LocalShell(), str(tmp_path / "nothing"), tmp_path / "here") == 0


def test_checkpoints_and_temporary_files_are_left_out(remote, tmp_path):
    (remote / CHECKPOINTS_FOLDER).mkdir()
    for name in (f"{CHECKPOINTS_FOLDER}/large", PROGRESS_FILE, "half.part"):
        (remote / name).write_bytes(b"x")
    download_folder(LocalShell(), str(remote), tmp_path / "here")
    assert contents(tmp_path / "here") == FILES


def test_the_result_file_appears_after_all_other_files(remote, tmp_path, monkeypatch):
    order = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: (order.append(target.name), replace(self, target)))
    download_folder(LocalShell(), str(remote), tmp_path / "here")
    assert order[-1] == RESULT_FILE
    assert len(order) == len(FILES)


def test_a_damaged_file_is_downloaded_again(remote, tmp_path):
    shell = UnreliableShell(bad=1, good=100_000, drops=False)
    assert download_folder(shell, str(remote), tmp_path / "here") == len(FILES)
    assert contents(tmp_path / "here") == FILES
    assert shell.bytes < 2 * 400_000


def test_a_file_that_is_damaged_in_each_attempt_is_an_error_and_leaves_no_partial_file(remote, tmp_path):
    with pytest.raises(ChecksumMismatch, match=r"checksum mismatch in each download of it's a name\.csv from "):
        download_folder(UnreliableShell(bad=9, good=100_000, drops=False), str(remote), tmp_path / "here")
    assert "it's a name.csv" not in contents(tmp_path / "here")


def test_a_row_with_damaged_files_has_no_result(remote, tmp_path):
    with pytest.raises(ChecksumMismatch):
        download_folder(UnreliableShell(bad=9, good=100_000, drops=False), str(remote), tmp_path / "here")
    assert RESULT_FILE not in contents(tmp_path / "here")


def test_the_download_of_a_large_file_is_resumed(remote, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MIN_RESUMED_BYTES", 1 << 20)
    (remote / "large").write_bytes(os.urandom(8 << 20))
    shell = UnreliableShell(bad=1, good=6 << 20, drops=True)
    with pytest.raises(ConnectionDropped):
        download_folder(shell, str(remote), tmp_path / "here")
    assert RESULT_FILE not in contents(tmp_path / "here")
    shell.bytes = 0
    download_folder(shell, str(remote), tmp_path / "here")
    assert contents(tmp_path / "here") == {**FILES, "large": (remote / "large").read_bytes()}
    assert shell.bytes < 4 << 20


def test_a_full_local_disk_is_an_error(remote, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "log.txt.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        download_folder(LocalShell(), str(remote), tmp_path / "here")


def test_progress_is_reported_in_files_and_bytes(remote, tmp_path):
    reported: list[TransferProgress] = []
    download_folder(LocalShell(), str(remote), tmp_path / "here", reported.append)
    assert [progress.files for progress in reported] == [1, 2, 3, 4]
    assert (reported[-1].bytes, reported[-1].total_bytes) == (sum(map(len, FILES.values())),) * 2
    assert reported[-1].left_s == 0


def test_new_lines_of_a_log_are_downloaded_before_the_result_exists(remote, tmp_path):
    local = tmp_path / "here"
    download_growing_files(LocalShell(), [(str(remote), local)], ["log.txt"])
    assert contents(local) == {"log.txt": b"said\n"}
    with (remote / "log.txt").open("ab") as log:
        log.write(b"more\n")
    download_growing_files(LocalShell(), [(str(remote), local), (str(tmp_path / "nothing"), local)], ["log.txt"])
    assert contents(local) == {"log.txt": b"said\nmore\n"}


def test_files_that_arrived_before_the_connection_dropped_are_not_downloaded_again(remote, tmp_path):
    shell = UnreliableShell(bad=1, good=310_000, drops=True)
    with pytest.raises(ConnectionDropped):
        download_folder(shell, str(remote), tmp_path / "here")
    assert "it's a name.csv" not in contents(tmp_path / "here")
    shell.bytes = 0
    download_folder(shell, str(remote), tmp_path / "here")
    assert contents(tmp_path / "here") == FILES
    assert shell.bytes < 100_000


@pytest.mark.parametrize("name", ["two\nlines", "back\\slash", "-r", "\\n"])
def test_a_file_may_have_any_name(remote, tmp_path, name):
    (remote / name).write_bytes(b"x")
    download_folder(LocalShell(), str(remote), tmp_path / "here")
    assert contents(tmp_path / "here") == {**FILES, name: b"x"}


def test_checksums_are_computed_without_openssl_too(remote, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHECKSUM_COMMAND", module.CHECKSUM_COMMAND.replace("openssl", "nothing-of-that-name"))
    assert download_folder(LocalShell(), str(remote), tmp_path / "here") == len(FILES)
    assert contents(tmp_path / "here") == FILES


def test_progress_is_shown_in_files_bytes_and_time():
    transfer = TransferProgress(3, 12, 4_000_000, 80_000_000, 61.0)
    assert download_progress(rows.spec("a"), transfer) == "a: downloading, 3 of 12 files, 4 of 80 MB, 1:01 left"


def test_progress_is_reported_at_intervals_with_the_time_left(monkeypatch):
    clock = FakeTime()
    monkeypatch.setattr(module, "time", clock)
    reported: list[TransferProgress] = []
    counter = module._TransferCounter([RemoteFile("a", 80), RemoteFile("b", 20)], reported.append)
    for seconds, count in ((0.25, 10), (0.01, 10), (9.74, 0)):
        clock.now += seconds
        counter.add(count)
    counter.finish_file()
    assert [(one.files, one.total_files, one.bytes, one.total_bytes) for one in reported] == [
        (0, 2, 20, 100),
        (0, 2, 20, 100),
        (1, 2, 20, 100),
    ]
    assert [one.left_s for one in reported] == pytest.approx([0.26 * 4, 40.0, 40.0])


def test_the_time_left_is_unknown_before_the_first_byte_has_arrived():
    reported: list[TransferProgress] = []
    module._TransferCounter([RemoteFile("a", 80)], reported.append).finish_file()
    assert reported == [TransferProgress(1, 1, 0, 80, None)]


def test_the_progress_of_a_resumed_file_starts_at_the_bytes_that_are_present(remote, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MIN_RESUMED_BYTES", 1 << 20)
    (remote / "large").write_bytes(os.urandom(1 << 20))
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "large.part").write_bytes((remote / "large").read_bytes()[:1000])
    reported: list[TransferProgress] = []
    shell = UnreliableShell(bad=0, good=0, drops=False)
    download_folder(shell, str(remote), tmp_path / "here", reported.append)
    assert (reported[-1].bytes, reported[-1].files) == (reported[-1].total_bytes, 5)
    assert shell.bytes < (1 << 20) + 400_000
    assert contents(tmp_path / "here") == {**FILES, "large": (remote / "large").read_bytes()}


@pytest.mark.parametrize("resumed_bytes", [1000, 1001])
def test_only_large_files_are_resumed(remote, tmp_path, monkeypatch, resumed_bytes):
    monkeypatch.setattr(module, "MIN_RESUMED_BYTES", resumed_bytes)
    (remote / "large").write_bytes(b"x" * 1000)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "large.part").write_bytes(b"x" * 999)
    resumed = []
    resume = module._resume
    monkeypatch.setattr(module, "_resume", lambda *args: (resumed.append(args[1]), resume(*args))[1])
    download_folder(LocalShell(), str(remote), tmp_path / "here")
    assert len(resumed) == (resumed_bytes == 1000)
    assert contents(tmp_path / "here")["large"] == b"x" * 1000


def test_a_damaged_file_is_downloaded_three_times_at_most(remote, tmp_path):
    shell = UnreliableShell(bad=2, good=100_000, drops=False)
    assert download_folder(shell, str(remote), tmp_path / "here") == len(FILES)
    failing = UnreliableShell(bad=3, good=100_000, drops=False)
    with pytest.raises(ChecksumMismatch):
        download_folder(failing, str(remote), tmp_path / "there2")
    assert failing.bad == 0


def test_a_log_that_has_not_grown_is_not_downloaded_again(remote, tmp_path, monkeypatch):
    shell = UnreliableShell(bad=0, good=0, drops=False)
    streamed, stream = [], shell.stream
    monkeypatch.setattr(shell, "stream", lambda *args, **more: streamed.append(args) or stream(*args, **more))
    for _ in range(2):
        download_growing_files(shell, [(str(remote), tmp_path / "here")], ["log.txt", "none.txt"])
    assert len(streamed) == 1


@pytest.mark.parametrize(("more_bytes", "connections"), [(0, 0), (1, 1)])
def test_only_a_large_download_opens_a_second_connection(remote, tmp_path, monkeypatch, more_bytes, connections):
    monkeypatch.setattr(module, "MAX_BYTES_WITHOUT_NEW_CONNECTION", sum(map(len, FILES.values())))
    (remote / "more").write_bytes(b"x" * more_bytes)
    shell, opened, open_output = LocalShell(), [], LocalShell.open_output
    monkeypatch.setattr(
        shell, "open_output", lambda *args, **more: opened.append(1) or open_output(shell, *args, **more)
    )
    download_folder(shell, str(remote), tmp_path / "here")
    assert len(opened) == connections
    assert contents(tmp_path / "here") == contents(remote)


def test_the_time_limit_of_a_transfer_is_an_hour(remote, tmp_path, monkeypatch):
    """Lists of files are answered within the usual time."""
    monkeypatch.setattr(module, "MIN_RESUMED_BYTES", 1)
    limits = []

    class TimedShell(LocalShell):
        def run(self, command, **options):
            limits.extend([options["timeout_s"]] if "timeout_s" in options else [])
            return super().run(command, **options)

        def open_output(self, command, **options):
            limits.append(options["timeout_s"])
            return super().open_output(command, **options)

        def stream(self, command, sink, **options):
            limits.append(options["timeout_s"])
            super().stream(command, sink, **options)

    download_growing_files(TimedShell(), [(str(remote), tmp_path / "here")], ["log.txt"])
    (tmp_path / "here" / "it's a name.csv.part").write_bytes(FILES["it's a name.csv"][:9])
    download_folder(TimedShell(), str(remote), tmp_path / "here")
    assert limits == [3600.0] * 4
