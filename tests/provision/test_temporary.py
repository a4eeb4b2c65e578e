"""Temporary folders end with their process, and those of killed processes with the next process."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.system.files import CODE_FOLDER
from provision.temporary import TemporaryFolder

PROGRAM = (
    "import sys, time; from pathlib import Path; from provision.temporary import TemporaryFolder;"
    "made = TemporaryFolder('test', Path(sys.argv[1])); print(made.path, flush=True); time.sleep(600)"
)


@pytest.fixture
def other_process(tmp_path):
    """Another process with a temporary folder in tmp_path, and that folder."""
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    with subprocess.Popen(command, cwd=CODE_FOLDER, stdout=subprocess.PIPE, text=True) as process:
        yield process, Path(process.stdout.readline().strip())
        process.kill()


def test_a_temporary_folder_is_removed_with_its_content(tmp_path):
    with TemporaryFolder("test", tmp_path) as folder:
        (folder / "within").mkdir()
    assert list(tmp_path.iterdir()) == []


def test_the_temporary_folder_of_a_killed_process_is_removed_by_the_next_process(tmp_path, other_process):
    process, folder = other_process
    (folder / "file.txt").write_text("left")
    process.send_signal(signal.SIGKILL)
    process.wait()
    with TemporaryFolder("test", tmp_path) as own:
        assert list(tmp_path.iterdir()) == [own]


def test_temporary_folders_of_running_processes_and_files_of_others_are_not_removed(tmp_path, other_process):
    _, folder = other_process
    (tmp_path / "llm-testbed-link").symlink_to(tmp_path)
    (tmp_path / "llm-testbed-file").write_text("kept")
    with TemporaryFolder("test", tmp_path) as own:
        assert {folder, own, tmp_path / "llm-testbed-link", tmp_path / "llm-testbed-file"} == set(tmp_path.iterdir())


def test_a_temporary_folder_that_was_removed_before_it_was_locked_is_created_again(tmp_path, monkeypatch):
    made, make = [], TemporaryFolder.__init__.__globals__["tempfile"].mkdtemp

    def removed_at_first(**options):
        made.append(make(**options))
        if len(made) == 1:
            Path(made[0]).rmdir()
        return made[-1]

    monkeypatch.setattr("provision.temporary.tempfile.mkdtemp", removed_at_first)
    with TemporaryFolder("test", tmp_path) as folder:
        assert [str(folder)] == made[1:]
