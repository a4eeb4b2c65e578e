"""Compile the repeated blocks of a model with torch.compile."""

import os
import shutil
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from experiments.errors import InputError
from experiments.suites.settings import Settings

C_COMPILERS = ("gcc", "clang")
"""Programs that Triton looks for if the environment variable CC is not set (triton.runtime.build)."""


def compile_blocks(blocks: Iterable[nn.Module], settings: Settings, device: torch.device) -> None:
    """Compile each of a model's ``blocks`` in place, if the row's settings ask for it.

    Equal blocks share one compilation. Lengths are variables of the compiled code unless all texts have the same length,
    so that a new length needs no compilation. On a CPU the operations are only captured, not compiled, so that no C++
    compiler is needed. PyTorch compiles nothing while a dispatch mode observes the operations: in the first micro-step,
    whose operations are counted, and in tiny models on a CPU, whose memory is measured.
    """
    if not settings.compile:
        return
    backend = "inductor" if device.type == "cuda" else "aot_eager"
    for block in blocks:
        block.compile(backend=backend, dynamic=settings.dataset != "constant")


def require_c_compiler() -> None:
    """Raise InputError if Triton lacks what it needs to start the compiled kernels: a C compiler, Python's headers."""
    stated = os.environ.get("CC")
    if not any(shutil.which(one) for one in (stated.split()[:1] if stated else C_COMPILERS)):
        raise InputError(
            f"compile = True: found {f'no program CC={stated}' if stated else 'no C compiler'}, which Triton needs to"
            f" start the compiled kernels; allowed: {' or '.join(C_COMPILERS)} in PATH, or the environment variable CC"
        )
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        raise InputError(f"compile = True: {header} is missing, which Triton needs; install the headers of Python")
