import csv
import os
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from experiments.results.gpu_load import TRAINING_UTILIZATION, training_utilization
from experiments.results.schema import SHARED_GPU_VARIABLE
from experiments.training.measure import telemetry
from experiments.training.measure.telemetry import (
    FIELDS,
    GPU_FIELDS,
    TelemetrySampler,
    combine_gpus,
    total_processes,
)
from provision.hardware import gpus
from provision.hardware.nvidia import NvidiaGpu

READINGS = {
    "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=87),
    "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(used=3 * 2**30),
    "nvmlDeviceGetPowerUsage": lambda handle: 412_500,
    "nvmlDeviceGetClockInfo": lambda handle, kind: {pynvml.NVML_CLOCK_SM: 1410}[kind],
    "nvmlDeviceGetTemperature": lambda handle, kind: {pynvml.NVML_TEMPERATURE_GPU: 61}[kind],
    "nvmlDeviceGetComputeRunningProcesses": lambda handle: ["one", "two"],
}
SAMPLE = dict(zip(GPU_FIELDS, (87.0, 3.0, 412.5, 1410.0, 61.0, 2.0), strict=True))


def not_supported(*args):
    raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)


@pytest.fixture
def fake_nvml(monkeypatch):
    """Fake NVML with two GPUs."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 2)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: f"GPU {index}")
    monkeypatch.setattr(pynvml, "nvmlDeviceGetIndex", lambda handle: int(handle.split()[1]))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda uuid: f"GPU of {uuid}")
    for name, read in READINGS.items():
        monkeypatch.setattr(pynvml, name, read)
    return monkeypatch


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(pynvml, "nvmlInit", not_supported)


def test_gpu_readings_are_converted_to_the_units_of_the_telemetry_columns(fake_nvml):
    assert NvidiaGpu("GPU 0").sample() == SAMPLE


@pytest.mark.parametrize(("function", "field"), zip(READINGS, GPU_FIELDS, strict=True))
def test_a_value_that_the_gpu_does_not_provide_is_omitted(fake_nvml, function, field):
    fake_nvml.setattr(pynvml, function, not_supported)
    assert NvidiaGpu("GPU 0").sample() == {key: value for key, value in SAMPLE.items() if key != field}


@pytest.mark.parametrize(
    ("visible", "handles"),
    [
        (None, ["GPU 0", "GPU 1"]),
        ("1", ["GPU 1"]),
        ("1, 0", ["GPU 1", "GPU 0"]),
        ("GPU-8f2a", ["GPU of GPU-8f2a"]),
        ("", []),
    ],
)
def test_only_visible_gpus_are_sampled(fake_nvml, visible, handles):
    if visible is not None:
        fake_nvml.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus.visible_gpus() == [NvidiaGpu(handle) for handle in handles]


def test_without_a_gpu_the_list_of_visible_gpus_is_empty(fake_nvml):
    fake_nvml.setattr(pynvml, "nvmlDeviceGetCount", lambda: 0)
    assert gpus.visible_gpus() == []
    fake_nvml.setattr(pynvml, "nvmlInit", not_supported)
    assert gpus.visible_gpus() == []


def test_several_gpus_have_combined_and_separate_columns():
    second = {"gpu_util_percent": 13.0, "gpu_memory_gib": 5.0, "gpu_power_w": 100.5}
    columns = combine_gpus([SAMPLE, second])
    assert columns == {
        "gpu_util_percent": 50.0,
        "gpu_memory_gib": 5.0,
        "gpu_power_w": 513.0,
        "gpu_sm_clock_mhz": 1410.0,
        "gpu_temperature_c": 61.0,
        "gpu_processes": 2.0,
        "gpu0_util_percent": 87.0,
        "gpu0_memory_gib": 3.0,
        "gpu1_util_percent": 13.0,
        "gpu1_memory_gib": 5.0,
    }
    assert combine_gpus([SAMPLE]) == SAMPLE
    assert combine_gpus([]) == {}


@pytest.mark.parametrize(
    ("on_each", "columns"),
    [
        ([1.0, 1.0], {"gpu_processes_of_all_gpus": 2.0}),
        ([1.0, 0.0], {"gpu_processes_of_all_gpus": 1.0}),  # no process on the second
        ([2.0, 1.0], {"gpu_processes_of_all_gpus": 3.0}),  # a second process on the first
        ([1.0, None], {}),
        ([], {}),
    ],
)
def test_processes_are_counted_over_all_gpus(on_each, columns):
    samples = [{} if count is None else {"gpu_processes": count} for count in on_each]
    assert total_processes(samples) == columns


@pytest.mark.parametrize(
    ("on_the_others", "load"),
    [
        ({1: [], 2: []}, 9),  # both without a process, one of them under load
        ({1: [7], 2: []}, 9),
        ({1: [], 2: [8]}, 0),  # a process of another program
        ({1: [], 2: [7, 8]}, 0),
        ({1: [], 2: [7]}, 9),  # a process of the row on a GPU that is not the row's
        ({1: [8], 2: [8]}, None),
    ],
)
def test_the_load_of_other_gpus_excludes_gpus_that_other_programs_use(fake_nvml, on_the_others, load):
    processes = {f"GPU {index}": [SimpleNamespace(pid=pid) for pid in pids] for index, pids in on_the_others.items()}
    fake_nvml.setenv("CUDA_VISIBLE_DEVICES", "0")
    fake_nvml.setattr(pynvml, "nvmlDeviceGetCount", lambda: 3)
    fake_nvml.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", processes.__getitem__)
    utilization = {"GPU 1": 0, "GPU 2": 9}
    fake_nvml.setattr(pynvml, "nvmlDeviceGetUtilizationRates", lambda one: SimpleNamespace(gpu=utilization[one]))
    assert gpus.make_load_reader_of_other_gpus()([7]) == load


def test_the_load_of_other_gpus_is_unknown_if_the_driver_does_not_report_it(fake_nvml):
    assert gpus.make_load_reader_of_other_gpus()([]) is None  # all GPUs are the row's
    fake_nvml.setenv("CUDA_VISIBLE_DEVICES", "0")
    fake_nvml.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", not_supported)
    assert gpus.make_load_reader_of_other_gpus()([]) is None
    fake_nvml.setattr(pynvml, "nvmlInit", not_supported)
    assert gpus.make_load_reader_of_other_gpus()([]) is None


def sample_process(path, pid, monkeypatch):
    """Return the rows of the file and the summary of at least five samples."""
    monkeypatch.setattr(telemetry, "SAMPLE_INTERVAL_S", 0.01)
    with TelemetrySampler(path, lambda: [pid], time.monotonic()) as sampler:
        limit = time.monotonic() + 20
        while len(sampler._samples) < 5 and time.monotonic() < limit:
            time.sleep(0.01)
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines)), sampler.summary()


def test_telemetry_samples_are_written_to_a_file_and_summarized(tmp_path, monkeypatch, fake_nvml):
    rows, summary = sample_process(tmp_path / "telemetry.csv", os.getpid(), monkeypatch)
    assert len(rows) >= 5
    each = [f"gpu{number}_{field}" for number in (0, 1) for field in ("util_percent", "memory_gib")]
    assert list(rows[0]) == [*FIELDS, "other_gpu_util_percent", *each]
    times = [float(row["t_s"]) for row in rows]
    assert times == sorted(times)
    for field in (*FIELDS[2:], *each):
        values = [float(row[field]) for row in rows]
        assert summary[f"{field}_mean"] == pytest.approx(sum(values) / len(values), abs=1e-3)
        assert summary[f"{field}_max"] == pytest.approx(max(values), abs=1e-3)
    assert summary["gpu_power_w_max"] == 825.0
    assert summary["gpu_processes_of_all_gpus_max"] == 4.0
    assert summary["process_memory_gib_max"] > 0.01
    assert 0 < summary["sampling_core_share"] < 1


@pytest.mark.parametrize("reported", [True, False])
def test_telemetry_of_a_row_on_a_shared_gpu_has_the_row_s_own_memory_and_no_load(fake_nvml, reported):
    """Fake: the row's process uses 3 GiB of the GPU, a neighbor's 8 GiB; some drivers report no memory by process."""
    own, neighbor = os.getpid(), 1
    processes = [
        SimpleNamespace(pid=pid, usedGpuMemory=gib * 2**30 if reported else None)
        for pid, gib in ((own, 3), (neighbor, 8))
    ]
    fake_nvml.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", lambda handle: processes)
    fake_nvml.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda handle: SimpleNamespace(used=12 * 2**30))
    fake_nvml.setenv("CUDA_VISIBLE_DEVICES", "0")
    fake_nvml.setenv(SHARED_GPU_VARIABLE, "1")
    sampler = TelemetrySampler(Path("unused"), lambda: [own], time.monotonic())
    sample = sampler._sample()
    common = {"gpu_sm_clock_mhz": 1410.0, "gpu_temperature_c": 61.0}
    of_row = {"gpu_memory_gib": 3.0, "gpu_processes": 1, "gpu_processes_of_all_gpus": 1} if reported else {}
    assert {name: value for name, value in sample.items() if name.startswith("gpu")} == common | of_row


def test_memory_by_process_is_unknown_where_nvml_does_not_support_it(fake_nvml):
    fake_nvml.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", not_supported)
    assert NvidiaGpu("GPU 0").process_gib() == {}


def test_gpu_columns_are_empty_without_a_gpu(tmp_path, monkeypatch, no_gpu):
    rows, summary = sample_process(tmp_path / "telemetry.csv", os.getpid(), monkeypatch)
    assert {row[field] for row in rows for field in GPU_FIELDS} == {""}
    assert not [key for key in summary if key.startswith("gpu")]


def test_sampling_continues_after_the_trainer_has_ended(tmp_path, monkeypatch, no_gpu):
    ended = subprocess.Popen(["true"])
    while ended.returncode is None and not os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
        time.sleep(0.01)
    with TelemetrySampler(tmp_path / "first.csv", lambda: [ended.pid], time.monotonic()) as sampler:
        ended.wait()
        sample = sampler._sample()
    assert sample["process_memory_gib"] == 0
    assert sample["host_memory_gib"] > 0


@pytest.mark.parametrize(
    ("utilization", "training"),
    [
        ([90, 0, 100, 0, 0, 0], [90, 0, 100]),  # idle within a step, and after the last one
        ([90, 100], [90, 100]),
        ([0, 0], [0, 0]),  # an idle GPU
        ([], []),
    ],
)
def test_training_utilization_excludes_idle_samples_at_the_end(utilization, training):
    samples: list[dict[str, float | str]] = [{"phase": "load", "gpu_util_percent": 50}, {"phase": "forward"}]
    samples += [{"phase": "optimizer step", "gpu_util_percent": value} for value in utilization]
    assert training_utilization(samples) == training


def test_training_utilization_excludes_the_time_of_loading(tmp_path, fake_nvml):
    sampler = TelemetrySampler(tmp_path / "telemetry.csv", lambda: [], time.monotonic())
    loading = sampler._sample()
    sampler.phase = "backward"
    fake_nvml.setattr(pynvml, "nvmlDeviceGetUtilizationRates", lambda handle: SimpleNamespace(gpu=21))
    sampler._samples += [loading, sampler._sample()]
    assert sampler.summary()[TRAINING_UTILIZATION] == 21
    assert sampler.summary()["gpu_util_percent_mean"] == 54
