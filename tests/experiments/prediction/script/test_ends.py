"""How `testbed predict -- COMMAND` ends in unusual places and after signals, as a program of its own."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from experiments.errors import InputError
from experiments.system.files import CODE_FOLDER
from experiments.system.processes import find_tagged
from tests.support.processes.waiting import enable_interrupts

LONG_S = 100
TAG = "TEST_OF_ENDS"
TRAIN = "import torch\ntorch.ones(2**20, device='cuda')\n"


def handle_signals() -> None:
    """Handle signals as in a terminal: pytest itself may run with nohup, or in the background of a shell."""
    enable_interrupts()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def start(tmp_path, library_cache):
    """Return a function that starts the command on a script, and the folder of its temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    environment = {**os.environ, "TESTBED_CACHE": str(library_cache), "TMPDIR": str(folder), TAG: str(tmp_path)}
    environment["PYTHONPATH"] = str(CODE_FOLDER)

    def start(source: str, cwd=tmp_path, before="", **changes: str) -> "subprocess.Popen[str]":
        (tmp_path / "train.py").write_text(source)
        words = f"{before} exec {sys.executable} -m experiments predict --card 24GiB -- python {tmp_path / 'train.py'}"
        return subprocess.Popen(
            ["sh", "-c", words],
            cwd=cwd,
            env=environment | changes,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=handle_signals,
        )

    return start, folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_script_and_removes_temporary_folders(start, tmp_path, number):
    begin, folder = start
    process = begin(f"open({str(tmp_path / 'begun')!r}, 'w')\nwhile True:\n    pass\n")
    deadline = time.monotonic() + LONG_S
    while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, error = process.communicate(timeout=LONG_S)
    assert process.returncode == 130
    assert error.splitlines()[-1] == "testbed: interrupted; predictions that were not shown are lost"
    assert list(folder.iterdir()) == []
    assert find_tagged(TAG, str(tmp_path)) == []


def test_a_closed_stderr_changes_nothing(start):
    begin, _ = start
    process = begin(TRAIN, before="exec 2>&-;")
    output, _ = process.communicate(timeout=LONG_S)
    assert process.returncode == 0
    assert "peak 0.0" in output


def test_a_removed_working_folder_is_named(start):
    begin, _ = start
    process = begin(TRAIN, before="mkdir gone; cd gone; rmdir ../gone;")
    _, error = process.communicate(timeout=LONG_S)
    assert process.returncode == 2
    assert error.splitlines()[-1] == "testbed: the current folder was removed; change to another folder"
    assert "Traceback" not in error


def test_a_cache_that_cannot_be_written_is_named(start):
    begin, _ = start
    process = begin(TRAIN, TESTBED_CACHE="/proc/none")
    _, error = process.communicate(timeout=LONG_S)
    assert process.returncode == 2
    assert error.splitlines()[-1].startswith("testbed: /proc/none: cannot be written (No such file or directory)")
    assert "Traceback" not in error


BROKEN_CELL = '{"cells": [{"cell_type": "code", "source": 3}], "metadata": {}, "nbformat": 4, "nbformat_minor": 4}'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON (line 1"),
        ("{}", "it has no version (nbformat)"),
        (BROKEN_CELL, "the source of cell 1 is neither"),
    ],
)
def test_a_broken_notebook_is_an_error_in_one_line_without_a_traceback(trace, tmp_path, capfd, text, reason):
    with pytest.raises(InputError, match=rf"lab\.ipynb: not a Jupyter notebook: {re.escape(reason)}"):
        trace(text, before=(), name="lab.ipynb")
    assert "Traceback" not in "".join(capfd.readouterr())
