"""Compiled PyTorch extensions: a folder for each environment and CPU, and the locks that killed builds leave."""

import sys
from pathlib import Path

import pytest

from experiments.runners.local import row_process, torch_extensions
from experiments.runners.local.torch_extensions import (
    BUILT_MARKER,
    compile_extensions,
    drop_stale_locks,
    extensions_folder,
)
from tests.support.processes.running import is_running
from tests.support.processes.waiting import wait_for
from tests.support.runners import rows

OFFLOADED = [rows.spec("a"), rows.spec("b", optimizer="deepspeed_cpu", strategy="deepspeed_stage_2_offload")]


def test_different_environments_and_processors_do_not_share_compiled_extensions(monkeypatch, tmp_path):
    monkeypatch.setenv("TESTBED_CACHE", str(tmp_path))
    builds = extensions_folder("one processor")
    assert builds.is_relative_to(tmp_path)
    assert builds == extensions_folder("one processor") != extensions_folder("another")
    with monkeypatch.context() as other:
        other.setattr("sys.prefix", "/elsewhere")
        assert builds != extensions_folder("one processor")
    with monkeypatch.context() as other:
        other.setattr(torch_extensions, "version", lambda _: "0.0.1")
        assert builds != extensions_folder("one processor")
    monkeypatch.setattr(torch_extensions, "versions", lambda: {"torch": "2.11.0", "deepspeed": "0.0.1"})
    assert builds != extensions_folder("one processor")


@pytest.mark.parametrize("alive", [True, False])
def test_the_lock_of_an_interrupted_compilation_is_removed_unless_a_row_is_running(monkeypatch, tmp_path, alive):
    (tmp_path / "cpu_adam").mkdir()
    lock = tmp_path / "cpu_adam" / "lock"
    lock.touch()
    monkeypatch.setattr(row_process, "any_row_alive", lambda: alive)
    drop_stale_locks(tmp_path)
    assert lock.exists() == alive


def compile_with(monkeypatch, folder, program, specs=OFFLOADED, stopped=lambda: False):
    """Compile with ``program`` instead of DeepSpeed; return the reported lines."""
    messages: list[str] = []
    monkeypatch.setattr(torch_extensions, "COMPILE_PROGRAM", program)
    compile_extensions(specs, folder, messages.append, stopped)
    return messages


def test_extensions_for_rows_with_offload_are_compiled_once_before_these_rows(monkeypatch, tmp_path):
    program = "import os; open(os.environ['TORCH_EXTENSIONS_DIR'] + '/made', 'x')"
    first, last = compile_with(monkeypatch, tmp_path / "cache", program)
    assert first.startswith("compiling DeepSpeed's CPU Adam, once for these versions and this processor")
    assert last.startswith("compiled DeepSpeed's CPU Adam in ")
    assert (tmp_path / "cache" / "made").exists()
    assert compile_with(monkeypatch, tmp_path / "cache", program) == []


def test_the_compilation_of_extensions_uses_the_same_ninja_as_the_rows(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "/usr/bin")
    row = row_process.environment_of_child_processes()["PATH"]
    assert row == f"{Path(sys.executable).parent}:/usr/bin"
    program = "import os; open(os.environ['TORCH_EXTENSIONS_DIR'] + '/path', 'w').write(os.environ['PATH'])"
    compile_with(monkeypatch, tmp_path, program)
    assert (tmp_path / "path").read_text() == row


def test_no_extension_is_compiled_for_rows_that_need_none(monkeypatch, tmp_path):
    assert compile_with(monkeypatch, tmp_path / "cache", "", OFFLOADED[:1]) == []
    assert not (tmp_path / "cache").exists()


def test_a_failed_compilation_names_its_log_and_is_repeated(monkeypatch, tmp_path):
    for _ in range(2):
        _, last = compile_with(monkeypatch, tmp_path, "print('no compiler'); raise SystemExit(3)")
        assert last == f"DeepSpeed's CPU Adam was not compiled (exit code 3), see {tmp_path / 'deepspeed.log'}"
    assert (tmp_path / "deepspeed.log").read_text() == "no compiler\n"
    assert not (tmp_path / BUILT_MARKER).exists()


def test_the_compilation_ends_if_the_run_is_interrupted(monkeypatch, tmp_path):
    pid = tmp_path / "pid"
    program = f"""
import subprocess
compiler = subprocess.Popen(['sleep', '600'])
open({str(pid)!r}, 'w').write(str(compiler.pid))
compiler.wait()
"""
    assert len(compile_with(monkeypatch, tmp_path, program, stopped=lambda: pid.exists() and pid.read_text())) == 1
    assert not (tmp_path / BUILT_MARKER).exists()
    wait_for(lambda: not is_running(int(pid.read_text())))
