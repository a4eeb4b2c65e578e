"""How the command line of a training script is parsed: file or module, arguments, launcher."""

import os

import pytest

from experiments.errors import InputError
from experiments.prediction.script.command import LaunchCommand, Program, parse_command


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("train.py", "lab.ipynb"):
        (tmp_path / name).write_text("")
    tool = tmp_path / "bin" / "tune"
    tool.parent.mkdir()
    tool.write_text("#!/usr/bin/env python3\n")
    (tmp_path / "bin" / "binary").write_bytes(b"\x7fELF")
    for file in tool.parent.iterdir():
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "program"),
    [
        ("python train.py --batch 4", Program("file", "train.py", ("--batch", "4"))),
        ("python3.11 -u -X dev -W ignore train.py", Program("file", "train.py", ())),
        ("/usr/bin/python3 train.py -m x", Program("file", "train.py", ("-m", "x"))),
        ("python -m pkg.train -v", Program("module", "pkg.train", ("-v",))),
        ("train.py a", Program("file", "train.py", ("a",))),
        ("lab.ipynb", Program("notebook", "lab.ipynb", ())),
        (
            "torchrun --nproc-per-node 4 train.py a",
            LaunchCommand("torchrun", ("--nproc-per-node", "4", "train.py", "a")),
        ),
        ("python -m torch.distributed.run train.py", LaunchCommand("torchrun", ("train.py",))),
        (
            "accelerate launch --num_processes 2 train.py",
            LaunchCommand("accelerate", ("--num_processes", "2", "train.py")),
        ),
        ("deepspeed --num_gpus 2 train.py", LaunchCommand("deepspeed", ("--num_gpus", "2", "train.py"))),
    ],
)
def test_a_command_line_is_split_into_program_and_arguments(line, program):
    assert parse_command(line.split()) == program


def test_an_installed_command_is_run_as_a_python_file(folder):
    assert parse_command(["tune", "run"]) == Program("file", str(folder / "bin" / "tune"), ("run",))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "no command after --; allowed: python FILE"),
        ("python", "python: a program is missing"),
        ("python -c pass", "python -c: not supported"),
        ("python -m", "python -m: the name of a module is missing"),
        ("python -Z train.py", "python -Z: unknown option"),
        ("python nowhere.py", "nowhere.py: no such file or command"),
        ("binary", "binary: not a Python program; allowed: python FILE"),
    ],
)
def test_a_command_that_runs_no_python_is_an_error_in_one_line(line, message):
    with pytest.raises(InputError) as caught:
        parse_command(line.split())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
