"""Trace the program that a script starts, if the script itself is only a launcher (trl, llamafactory-cli)."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from experiments.errors import InputError
from experiments.prediction.script.command import LaunchCommand, Program, parse_command

Command = Program | LaunchCommand


def trace_started_programs(is_launcher: Callable[[], bool], run: Callable[[Command], int]) -> None:
    """Replace subprocess.Popen, so that ``run`` runs a program that a launcher starts in this process.

    This applies to Python files, and to programs that torchrun, accelerate or deepspeed start, unless their output is
    captured. is_launcher: returns whether the script may be only a launcher: it has used no GPU yet. run: does not
    return if the program uses the GPU, else returns the program's exit code. Popen then starts a process that only ends
    with this exit code.
    """
    start = subprocess.Popen.__init__

    def start_or_run(popen: Any, args: Any, *other_arguments: Any, **options: Any) -> None:
        command = None if other_arguments or options.get("stdout") else _training_command(args)
        if command is not None and is_launcher():
            with _program_environment(options.get("env"), options.get("cwd")):
                args = [sys.executable, "-c", f"raise SystemExit({run(command)})"]
        start(popen, args, *other_arguments, **options)

    subprocess.Popen.__init__ = start_or_run  # type: ignore[assignment, method-assign]


def _training_command(args: Any) -> Command | None:
    """Return the program that the arguments of Popen start, if it can be a training; None for everything else."""
    if isinstance(args, str | bytes | os.PathLike):
        return None
    try:
        command = parse_command([os.fsdecode(word) for word in args])
    except InputError:
        return None
    is_script = isinstance(command, LaunchCommand) or (command.kind == "file" and command.target.endswith(".py"))
    return command if is_script else None


@contextmanager
def _program_environment(variables: Mapping[str, str] | None, folder: Any) -> Iterator[None]:
    """Give this process the environment and working folder of a program; restore the previous ones at the end."""
    previous_variables, previous_folder, arguments, path = dict(os.environ), os.getcwd(), sys.argv, list(sys.path)
    os.environ.update({name: str(value) for name, value in (variables or {}).items()})
    os.chdir(folder or previous_folder)
    yield
    os.chdir(previous_folder)
    os.environ.clear()
    os.environ.update(previous_variables)
    sys.argv, sys.path[:] = arguments, path
