"""Which tests are slow, and the check that no other test starts a program of several seconds."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PYTHON = sys.executable
FIXTURES = {"traces_start_warm", "ranks_start_warm", "traced", "finished_row", "library_cache"}
"""Every test with one of these fixtures is slow."""
FILES = [
    "docs/test_commands.py::test_a_block_of_commands_runs_as_written",
    "experiments/history/test_mlflow.py",
    "experiments/notebooks/test_row.py",
    "experiments/notebooks/test_sizing.py",
    "experiments/prediction/loops/test_torchao.py::test_the_predicted_peak_is_the_measured_one",
    "experiments/prediction/loops/test_torchao.py::test_the_states_of_the_trainer_have_this_many_bits",
    "experiments/prediction/loops/test_torchao.py::test_torchao_cannot_update_in_the_backward_pass",
    "experiments/prediction/phantom/test_device.py",
    "experiments/prediction/script/missing/test_trackers.py::test_the_real_mlflow_writes_to_the_folder",
    "experiments/prediction/script/test_inside.py",
    "experiments/prediction/script/test_sandbox.py",
    "experiments/prediction/test_hostile_numbers.py::test_a_command_too_long_for_a_process_argument_reaches_the_tracer",
    "experiments/prediction/test_predict.py",
    "experiments/prediction/test_tracer.py",
    "experiments/prediction/test_truth.py",
    "experiments/report/test_browser.py",
    "experiments/report/test_pages.py",
    "experiments/runners/local/test_row_process.py",
    "experiments/runners/local/test_runner.py",
    "experiments/runners/local/test_warm.py",
    "experiments/semester/test_check.py",
    "experiments/training/data/test_litgpt_checkpoint.py",
    "experiments/training/distributed/test_node_agent.py",
    "experiments/training/distributed/test_ranks.py",
    "experiments/training/distributed/test_warm_ranks.py",
    "experiments/training/engines/test_checkpoints.py",
    "experiments/training/models/test_compilation.py::test_a_compiled_row_has_the_same_losses_with_few_compilations",
    "experiments/training/models/test_compilation.py::test_a_row_with_compiled_blocks_of_an_image_model_can_be_trained",
    "experiments/training/test_miniatures.py",
    "experiments/training/test_transformers_compat.py",
    "experiments/watch/test_browser.py",
    "experiments/watch/test_live.py",
    "package/test_environment.py",
    "package/test_wheel.py",
    "provision/configure/test_package_key.py",
    "provision/configure/test_playbook.py",
    "provision/leasing/test_histories.py",
]
"""Files, or tests of a file, that take several seconds of a core."""
PROGRAMS = re.compile(r"chromium|\bc\+\+|\bg\+\+|-m pip\b")
"""Programs that take several seconds: a browser, compilers and an installer."""
MODULES = re.compile(r"experiments\.prediction\.(tracer|script\.traced)|-m experiments\.training|training\.engines")
"""Modules that import PyTorch if this Python runs them: traces, rows and ranks. A fake Python does not import it."""


def is_slow(item: pytest.Item) -> bool:
    """Return whether a test needs the marker ``slow``, because FILES lists it or because it has one of FIXTURES."""
    place = item.nodeid.partition("[")[0].removeprefix("tests/")
    listed = place in FILES or place.partition("::")[0] in FILES
    return listed or bool(FIXTURES & set(getattr(item, "fixturenames", ())))


def reject_slow_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the test fail if it starts one of PROGRAMS."""
    start = subprocess.Popen.__init__

    def checked(self: Any, args: Any, *more: Any, **options: Any) -> None:
        command = " ".join(map(str, [args] if isinstance(args, str | bytes | Path) else args))
        if found := PROGRAMS.search(command) or (PYTHON in command and MODULES.search(command)):
            pytest.fail(f"starts {found[0]}, so it is slow: mark it, or list it in tests/support/slow.py\n{command}")
        start(self, args, *more, **options)

    monkeypatch.setattr(subprocess.Popen, "__init__", checked)
