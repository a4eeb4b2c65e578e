"""Fixtures that trace scripts on the phantom device."""

import textwrap

import pytest

from experiments.prediction.script.options import ScriptOptions
from experiments.prediction.script.record import ScriptPrediction
from experiments.prediction.script.trace import trace_script

CARD = ["a100_80gb"]


@pytest.fixture
def trace_in_new_process(tmp_path, library_cache, monkeypatch):
    """Return a function that traces a script with these arguments, and returns the predictions."""
    monkeypatch.setenv("TESTBED_CACHE", str(library_cache))
    monkeypatch.chdir(tmp_path)

    def trace(source: str, *words: str, before=("python",), cards=CARD, name="train.py", **options):
        (tmp_path / name).write_text(textwrap.dedent(source))
        messages: list[str] = []
        return trace_script([*before, name, *words], cards, messages.append, ScriptOptions(**options))

    return trace


@pytest.fixture
def trace(trace_in_new_process, traces_start_warm):
    """Return the same function; its traces start warm."""
    return trace_in_new_process


@pytest.fixture
def traced(trace):
    """Return a function that traces a script with one rank, and returns its prediction."""

    def traced(*arguments, **options) -> ScriptPrediction:
        (one,) = trace(*arguments, **options)
        return one

    return traced


@pytest.fixture
def triton(tmp_path):
    """Write a fake of Triton beside the traced script. Its kernels fail if they are compiled."""
    for name in ("__init__", "runtime/__init__", "runtime/autotuner", "runtime/jit"):
        file = tmp_path / "triton" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        classes = {"runtime/autotuner": ("Autotuner", "Heuristics"), "runtime/jit": ("JITFunction",)}.get(name, ())
        file.write_text("".join(f"class {one}:\n    pass\n" for one in classes))
