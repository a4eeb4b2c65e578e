"""Requirements of tests: in CI a missing one is a failure; elsewhere the tests are skipped with the reason."""

import os
import shutil
from collections.abc import Sequence

import pytest

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def missing(programs: Sequence[str], packages: str, root: bool = False) -> str:
    """Return what is missing, in words; '' if nothing is missing."""
    absent = [program for program in programs if not shutil.which(program, path=PATH)]
    wants = ["root"] if root and os.geteuid() else []
    return ", ".join([*wants, *absent]) + (f" (apt install {packages})" if absent else "")


def need(programs: Sequence[str], packages: str, root: bool = False) -> None:
    if absent := missing(programs, packages, root):
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"needs {absent}")
