"""Parse the command line of a training script: the program, its arguments, and the launcher of several ranks."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from experiments.errors import InputError
from provision.files import open_file

ProgramKind = Literal["file", "module", "notebook"]
Launcher = Literal["torchrun", "accelerate", "deepspeed"]
PYTHON_NAME = re.compile(r"python(\d+(\.\d+)*)?")
SHEBANG = re.compile(rb"#!.*python|#!/bin/sh\n'''exec' .*python")
PYTHON_FLAGS = set("BbdEhiIOPqsSuvVx?")
"""Options of python without a value; -W and -X have one."""
ALLOWED_COMMANDS = (
    "python FILE, python -m MODULE, a notebook, an installed Python command, torchrun, accelerate launch or deepspeed"
)


class Program(NamedTuple):
    """A program: a file, module or notebook, and its arguments without the program's name."""

    kind: ProgramKind
    target: str
    arguments: tuple[str, ...]


class LaunchCommand(NamedTuple):
    """A launcher and its arguments, which end with the program and the program's arguments."""

    launcher: Launcher
    arguments: tuple[str, ...]


def parse_command(command: Sequence[str]) -> Program | LaunchCommand:
    """Return the program or the launcher of a command. Raises InputError if no Python program is started."""
    if not command:
        raise InputError(f"no command after --; allowed: {ALLOWED_COMMANDS}")
    name, *rest = command
    program = Path(name).name
    if PYTHON_NAME.fullmatch(program):
        return _parse_python(rest)
    if program == "torchrun":
        return LaunchCommand("torchrun", tuple(rest))
    if program == "accelerate" and rest[:1] == ["launch"]:
        return LaunchCommand("accelerate", tuple(rest[1:]))
    if program == "deepspeed":
        return LaunchCommand("deepspeed", tuple(rest))
    return _parse_file(name, rest)


def _parse_python(command: Sequence[str]) -> Program | LaunchCommand:
    """Return the program or launcher of `python WORDS`; options of python itself are ignored."""
    position = 0
    while position < len(command) and command[position].startswith("-") and command[position] != "-m":
        option = command[position]
        if option in ("-", "-c"):
            raise InputError(f"python {option}: not supported; allowed: {ALLOWED_COMMANDS}")
        position += 2 if option in ("-W", "-X") else 1
        if not option.startswith("--") and not set(option[1:]) <= PYTHON_FLAGS and option[1] not in "WX":
            raise InputError(f"python {option}: unknown option")
    if position == len(command):
        raise InputError(f"python: a program is missing; allowed: {ALLOWED_COMMANDS}")
    if command[position] != "-m":
        return _parse_file(command[position], command[position + 1 :])
    module = command[position + 1 : position + 2]
    if not module:
        raise InputError("python -m: the name of a module is missing")
    rest = tuple(command[position + 2 :])
    if module[0] in ("torch.distributed.run", "torch.distributed.launch"):
        return LaunchCommand("torchrun", rest)
    if module[0] == "accelerate.commands.launch":
        return LaunchCommand("accelerate", rest)
    return Program("module", module[0], rest)


def _parse_file(name: str, rest: Sequence[str]) -> Program:
    """Return the program in a file. A name without a folder is also searched in PATH."""
    path = Path(name)
    if not path.is_file():
        installed = shutil.which(name)
        if installed is None:
            raise InputError(f"{name}: no such file or command")
        path = Path(installed)
    if path.suffix == ".ipynb":
        return Program("notebook", str(path), tuple(rest))
    try:
        with open_file(path) as file:
            first_bytes = file.read(200)
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror})") from None
    if path.suffix != ".py" and not SHEBANG.match(first_bytes):
        raise InputError(f"{name}: not a Python program; allowed: {ALLOWED_COMMANDS}")
    return Program("file", str(path), tuple(rest))
