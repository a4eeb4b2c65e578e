"""Trace the program that a script starts, if the script itself is only a launcher (trl, llamafactory-cli)."""

import os
import subprocess
from collections.abc import Callable
from typing import Any

from experiments.errors import InputError
from experiments.prediction.script.command import LaunchCommand, Program, parse_command

Command = Program | LaunchCommand


def trace_started_programs(is_launcher: Callable[[], bool], run: Callable[[Command], None]) -> None:
    """Replace subprocess.Popen: call ``run``, which does not return, with the first training program that is started.

    A training program is a Python file, or one that torchrun, accelerate or deepspeed starts. is_launcher: whether the
    script has used no GPU yet.
    """
    start = subprocess.Popen.__init__

    def start_or_run(popen: Any, args: Any, *more: Any, **options: Any) -> None:
        command = _training_command(args)
        if command is None or not is_launcher():
            start(popen, args, *more, **options)
            return
        os.environ.update({name: str(value) for name, value in (options.get("env") or {}).items()})
        os.chdir(options.get("cwd") or os.getcwd())
        run(command)

    subprocess.Popen.__init__ = start_or_run  # type: ignore[assignment, method-assign]


def _training_command(args: Any) -> Command | None:
    """Return the training program that the arguments of Popen start; None for everything else."""
    if isinstance(args, str | bytes | os.PathLike):
        return None
    try:
        command = parse_command([os.fsdecode(word) for word in args])
    except InputError:
        return None
    is_script = isinstance(command, LaunchCommand) or (command.kind == "file" and command.target.endswith(".py"))
    return command if is_script else None
