"""What tests need of this machine; in CI it has to be there, elsewhere they are left out with the reason."""

import os
import shutil
from collections.abc import Sequence

import pytest

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def missing(programs: Sequence[str], packages: str, root: bool = False) -> str:
    """What is not there, in words; '' where all is."""
    absent = [program for program in programs if not shutil.which(program, path=PATH)]
    wants = ["root"] if root and os.geteuid() else []
    return ", ".join([*wants, *absent]) + (f" (apt install {packages})" if absent else "")


def need(programs: Sequence[str], packages: str, root: bool = False) -> None:
    if absent := missing(programs, packages, root):
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"needs {absent}")
