"""The sandbox of a traced script: a copy of its folder, in which it may write and start processes."""

import os
import socket

import psutil
import pytest

from experiments.errors import InputError
from experiments.prediction.script import sandbox as sandboxes
from experiments.prediction.script.options import ScriptOptions
from experiments.prediction.script.sandbox import isolation_command, sandbox
from experiments.prediction.script.trace import trace_script

SCRIPT = """
import os, pathlib, socket, subprocess, sys, tempfile
import torch
here, mark, port = sys.argv[1:]
assert pathlib.Path("data.txt").read_text() == "given"
beside = pathlib.Path(__file__).with_name("beside.txt")
for path in ("made.txt", f"{here}/absolute.txt", beside, os.path.expanduser("~/home.txt")):
    pathlib.Path(path).write_text("x")
os.remove("data.txt")
print("temporary", tempfile.mkstemp()[1], file=sys.stderr)
subprocess.Popen(["setsid", "sleep", mark])
try:
    socket.create_connection(("127.0.0.1", int(port)), 1)
except OSError:
    print("cut off", file=sys.stderr)
torch.zeros(2**20, device="cuda")
"""


def test_a_script_can_write_and_fork_and_connect_only_in_its_sandbox(tmp_path, library_cache, monkeypatch, capfd):
    monkeypatch.setenv("TESTBED_CACHE", str(library_cache))
    work, home = tmp_path / "work", tmp_path / "home"
    for folder in (work, home):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    (work / "data.txt").write_text("given")
    (work / "train.py").write_text(SCRIPT)
    mark = f"{os.getpid()}77"
    messages: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        words = ["python", str(work / "train.py"), str(work) + "/.", mark, port]
        trace_script(words, ["a100_80gb"], messages.append, ScriptOptions(sandbox=True))
    printed = capfd.readouterr().err
    assert {path.name for path in work.iterdir()} == {"data.txt", "train.py"}
    assert [path.name for path in home.iterdir()] == []
    (made,) = [line.split()[1] for line in printed.splitlines() if line.startswith("temporary")]
    assert "llm-testbed-sandbox-" in made
    assert not os.path.exists(made)
    assert "in a copy of this folder" in messages[0]
    if isolation_command():
        assert "cut off" in printed
        assert not [one for one in psutil.process_iter(["cmdline"]) if mark in (one.info["cmdline"] or [])]


def test_without_the_option_for_a_sandbox_nothing_is_copied_and_the_output_says_so(
    tmp_path, traces_start_warm, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("import torch\ntorch.zeros(9, device='cuda')\nopen('made.txt', 'w')\n")
    messages: list[str] = []
    trace_script(["python", "train.py"], ["a100_80gb"], messages.append, ScriptOptions())
    assert (tmp_path / "made.txt").exists()
    assert "in this folder, with your files and network" in messages[0]


def test_a_folder_too_large_to_copy_is_rejected(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sandboxes, "MAX_FOLDER_GIB", 1e-9)
    (tmp_path / "weights.bin").write_bytes(b"12")
    with pytest.raises(InputError, match="the maximum for a copy"), sandbox():
        pass
