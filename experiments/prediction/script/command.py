"""The command line of a training script: what Python would run, with which arguments, on how many GPUs."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from experiments.errors import InputError

Kind = Literal["file", "module", "notebook"]
Launcher = Literal["torchrun", "accelerate", "deepspeed"]
PYTHON = re.compile(r"python(\d+(\.\d+)*)?")
SHEBANG = re.compile(rb"#!.*python|#!/bin/sh\n'''exec' .*python")
WITHOUT_VALUE = set("BbdEhiIOPqsSuvVx?")
"""Options of python that stand alone; -W and -X have a value."""
ALLOWED = (
    "python FILE, python -m MODULE, a notebook, an installed Python command, torchrun, accelerate launch or deepspeed"
)


class Program(NamedTuple):
    """What runs: a file, a module or a notebook, and its arguments without its own name."""

    kind: Kind
    target: str
    arguments: tuple[str, ...]


class Launch(NamedTuple):
    """A launcher and its arguments, which end with the program's."""

    launcher: Launcher
    arguments: tuple[str, ...]


def parsed(words: Sequence[str]) -> Program | Launch:
    """Return what the command runs. Raises InputError for a command that is not Python."""
    if not words:
        raise InputError(f"no command after --; allowed: {ALLOWED}")
    name, *rest = words
    program = Path(name).name
    if PYTHON.fullmatch(program):
        return _of_python(rest)
    if program == "torchrun":
        return Launch("torchrun", tuple(rest))
    if program == "accelerate" and rest[:1] == ["launch"]:
        return Launch("accelerate", tuple(rest[1:]))
    if program == "deepspeed":
        return Launch("deepspeed", tuple(rest))
    return _of_file(name, rest)


def _of_python(words: Sequence[str]) -> Program | Launch:
    """Return what `python WORDS` runs; python's own options are not used."""
    place = 0
    while place < len(words) and words[place].startswith("-") and words[place] != "-m":
        option = words[place]
        if option in ("-", "-c"):
            raise InputError(f"python {option}: a program in a file or module is needed; allowed: {ALLOWED}")
        place += 2 if option in ("-W", "-X") else 1
        if not option.startswith("--") and not set(option[1:]) <= WITHOUT_VALUE and option[1] not in "WX":
            raise InputError(f"python {option}: unknown option")
    if place == len(words):
        raise InputError(f"python without a program; allowed: {ALLOWED}")
    if words[place] != "-m":
        return _of_file(words[place], words[place + 1 :])
    module = words[place + 1 : place + 2]
    if not module:
        raise InputError("python -m: a module's name is needed")
    rest = tuple(words[place + 2 :])
    if module[0] in ("torch.distributed.run", "torch.distributed.launch"):
        return Launch("torchrun", rest)
    if module[0] == "accelerate.commands.launch":
        return Launch("accelerate", rest)
    return Program("module", module[0], rest)


def _of_file(name: str, rest: Sequence[str]) -> Program:
    """Return the program in a file; a name without a folder is looked for in PATH as well."""
    path = Path(name)
    if not path.is_file():
        found = shutil.which(name)
        if found is None:
            raise InputError(f"{name}: no such file or command")
        path = Path(found)
    if path.suffix == ".ipynb":
        return Program("notebook", str(path), tuple(rest))
    with path.open("rb") as file:
        start = file.read(200)
    if path.suffix != ".py" and not SHEBANG.match(start):
        raise InputError(f"{name}: not a Python program; allowed: {ALLOWED}")
    return Program("file", str(path), tuple(rest))
