"""Predictions that a program starts in its own code: the example of the documentation, and errors."""

import re
import subprocess
import sys

from experiments.system.files import CODE_FOLDER

PAGE = CODE_FOLDER / "docs" / "how-to" / "predict-a-script.md"


def run_program(program, tmp_path, library_cache):
    (tmp_path / "program.py").write_text(program)
    """Run the program. At its end, it has removed the temporary folders of this project."""
    (temporary := tmp_path / "temporary").mkdir(exist_ok=True)
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(CODE_FOLDER), "TESTBED_CACHE": str(library_cache)}
    environment["TMPDIR"] = str(temporary)
    command = [sys.executable, "program.py"]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert not list(temporary.glob("llm-testbed-*"))
    return ran


def test_the_example_of_the_documentation_stops_after_two_steps_and_prints_its_memory(tmp_path, library_cache):
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    shows_lines = "print(step, {one.line for one in predicted.prediction.lines})"
    ran = run_program(f"{example}\n{shows_lines}", tmp_path, library_cache)
    assert ran.returncode == 0, ran.stderr
    outcome, parts, time, lines = ran.stdout.splitlines()
    assert outcome.startswith("fits: peak 15.02 GiB, reserved ")
    assert "'optimizer': 6.00" in parts
    assert re.fullmatch(r"[\d.]+ s ±25 % for each step, limited by GPU: matrix products", time)
    assert lines.startswith("2 ")
    assert "program.py:6" in lines  # the model


def test_a_phantom_block_after_the_import_of_torch_or_without_gpu_memory_is_an_error(tmp_path, library_cache):
    start = "from experiments.prediction.script.inside import phantom\n"
    (tmp_path / "torch.py").touch()
    ran = run_program(f"import torch\n{start}with phantom('v100_32gb'): pass", tmp_path, library_cache)
    assert "InputError: phantom(): PyTorch is already imported" in ran.stderr
    (tmp_path / "torch.py").unlink()
    ran = run_program(f"{start}with phantom('v100_32gb'): pass", tmp_path, library_cache)
    assert "InputError: phantom(): the block allocated nothing on the GPU" in ran.stderr
