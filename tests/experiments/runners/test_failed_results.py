"""Results of rows that were rejected, or whose processes wrote none."""

from datetime import UTC, datetime
from typing import Any

import pytest

from experiments.results.provenance import code_sha256
from experiments.results.schema import LOG_FILE, PROGRESS_FILE, RESULT_FILE, Device, Memory, Progress, read_result
from experiments.runners.failed_results import device_of, write_failed_result, write_rejected_result
from experiments.runners.local.row_process import NOTEBOOK_LOG
from tests.support.runners.rows import GPU, T4, node, spec

ON_CPU = {"task": "generate", "engine": "hf_trainer", "model": "gpt-neo-1.3b", "accelerator": "cpu"}


@pytest.fixture
def failed(tmp_path):
    """Write the result of a failed row on a GPU; ``files`` are those in its folder."""

    def write(outcome="error", elapsed_s=0.0, **files):
        for name, text in files.items():
            (tmp_path / {"log": LOG_FILE, "notebook": NOTEBOOK_LOG, "progress": PROGRESS_FILE}[name]).write_text(text)
        device = device_of(node(T4), [T4])
        result = write_failed_result(tmp_path, spec(), device, outcome, "no luck", elapsed_s)
        assert read_result(tmp_path / RESULT_FILE) == result
        return result

    return write


def test_a_failed_result_has_the_rows_last_progress(failed):
    own = device_of(node(GPU), [GPU])
    at = Progress(
        phase="backward", step=3, micro_steps=7, planned_micro_steps=9, memory=Memory(peak_gib=1.5), device=own
    )
    result = failed(progress=at.model_dump_json())
    assert (result.failure.phase, result.failure.step, result.memory.peak_gib) == ("backward", 3, 1.5)
    assert result.device == own
    without_device = at.model_copy(update={"device": None})
    assert failed(progress=without_device.model_dump_json()).device.name == "NVIDIA T4"


def test_a_row_that_failed_before_its_first_progress_failed_while_loading(failed):
    result = failed()
    assert (result.failure.phase, result.failure.step, result.failure.message) == ("load", None, "no output")
    assert (result.outcome, result.reason, result.memory) == ("error", "no luck", Memory())
    assert (result.code, result.fingerprint) == (code_sha256(), spec().fingerprint)
    assert result.failure.kind == "the row's processes ended"
    assert failed("timeout").failure.kind == "time limit"


def test_the_log_of_the_notebook_is_read_if_the_row_printed_nothing(failed):
    assert failed(notebook="said by the kernel\n").failure.message == "said by the kernel"
    assert failed(log=" \n", notebook="said by the kernel\n").failure.log == ("said by the kernel",)
    assert failed(log="said by the row\n").failure.message == "said by the row"


def test_the_start_of_a_failed_row_is_the_current_time_minus_its_elapsed_time(failed):
    result = failed(elapsed_s=3600.0)
    began = datetime.fromisoformat(result.started_at)
    assert 3599 < (datetime.now(UTC) - began).total_seconds() < 3660
    assert result.elapsed_s == 3600.0


def test_the_result_of_a_rejected_row_names_the_device_that_the_row_would_have_used(tmp_path):
    result = write_rejected_result(tmp_path, spec(devices=2), node(GPU, GPU), "no space")
    assert (result.outcome, result.reason, result.elapsed_s) == ("rejected", "no space", 0.0)
    assert (result.device.kind, result.device.count) == ("cuda", 1)
    assert read_result(tmp_path / RESULT_FILE) == result
    on_cpu = write_rejected_result(tmp_path, spec(**ON_CPU), node(GPU), "no space")
    assert (on_cpu.device.kind, on_cpu.device.name) == ("cpu", "processor")


def test_the_device_of_a_row_is_its_first_gpu_or_the_processor():
    expected: dict[str, Any] = {"host_cpus": 2, "host_memory_gib": 64.0}
    assert device_of(node(GPU, GPU), [GPU, GPU]) == Device(
        kind="cuda", name=GPU.name, count=2, memory_gib=GPU.memory_gib, card="a100_80gb", **expected
    )
    assert device_of(node(GPU), []) == Device(kind="cpu", name="processor", count=1, **expected)
