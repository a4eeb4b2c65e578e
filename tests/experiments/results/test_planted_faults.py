"""Faults on a machine with four GPUs: for each, a statement of a lab fails. Fake: NVML."""

import time
from types import SimpleNamespace

import pynvml
import pytest

from experiments.results.evaluate import evaluate
from experiments.results.gpu_load import gpu_load
from experiments.results.run_folder import RunFolder
from experiments.results.schema import Failure, Speed
from experiments.suites.suite import suite_named
from experiments.training.measure.telemetry import TelemetrySampler
from tests.support.results.evidence import EVIDENCE
from tests.support.results.handwritten import A100, make_result, make_run

ROW, OTHER, STRANGER = [11, 12, 13, 14], 21, 99
"""Process ids: of the row's ranks, a second one of the row, one of another program."""


def statuses(suite, results, *claims):
    """Return the status of each claim on the results by row."""
    run = make_run(suite=suite, recipe_version=suite_named(suite).version, rows=tuple(results))
    made = {row: make_result(run, row, device=A100, **facts) for row, facts in results.items()}
    found = {verdict.id: verdict.status for verdict in evaluate(suite_named(suite), run, made).verdicts}
    return [found[f"claim/{claim}"] for claim in claims]


@pytest.fixture
def telemetry(monkeypatch, tmp_path):
    """Return the telemetry summary of a row on the GPUs ``visible`` of four GPUs with these loads and processes."""

    def measure(visible, loads, processes):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        readings = {
            "nvmlInit": lambda: None,
            "nvmlShutdown": lambda: None,
            "nvmlDeviceGetCount": lambda: 4,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetIndex": lambda handle: handle,
            "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=loads[handle]),
            "nvmlDeviceGetComputeRunningProcesses": lambda handle: [SimpleNamespace(pid=p) for p in processes[handle]],
            "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(used=2**30),
            "nvmlDeviceGetPowerUsage": lambda handle: 300_000,
            "nvmlDeviceGetClockInfo": lambda handle, kind: 1410,
            "nvmlDeviceGetTemperature": lambda handle, kind: 60,
        }
        for name, read in readings.items():
            monkeypatch.setattr(pynvml, name, read)
        sampler = TelemetrySampler(tmp_path / "telemetry.csv", lambda: [*ROW, OTHER], time.monotonic())
        sampler.phase = "forward"
        sampler._samples = [sampler._sample() for _ in range(5)]
        return sampler.summary()

    return measure


@pytest.mark.parametrize(
    ("loads", "processes", "expected"),
    [
        ([97, 0, 0, 0], [ROW[:1], [], [], []], ["pass", "pass"]),
        ([97, 0, 0, 0], [[ROW[0], OTHER], [], [], []], ["fail", "pass"]),
        ([40, 0, 0, 0], [ROW[:1], [], [], []], ["fail", "pass"]),
        ([97, 0, 30, 0], [ROW[:1], [], [], []], ["pass", "fail"]),
        ([97, 0, 30, 0], [ROW[:1], [], [OTHER], []], ["pass", "fail"]),
        ([97, 0, 30, 0], [ROW[:1], [], [STRANGER], []], ["pass", "pass"]),  # another program's GPU is left out
        ([97, 9, 9, 9], [ROW[:1], *([STRANGER],) * 3], ["pass", "not evaluated"]),  # no GPU is left to sample
    ],
)
def test_wrong_processes_or_loads_on_one_gpu_fail_their_statements(telemetry, loads, processes, expected):
    found = {"7b-1gpu": {"telemetry": telemetry("0", loads, processes)}}
    claims = ("one-process-keeps-one-gpu-busy", "other-gpus-are-idle")
    assert statuses("multi_gpu_litgpt", found, *claims) == expected


@pytest.mark.parametrize(
    ("loads", "processes", "expected"),
    [
        ([97, 96, 95, 94], [[pid] for pid in ROW], "pass"),
        ([97, 96, 95, 94], [[*ROW[:1], OTHER], *([pid] for pid in ROW[1:])], "fail"),
        ([97, 96, 95, 94], [*([pid] for pid in ROW[:3]), []], "fail"),
        ([97, 96, 0, 94], [[pid] for pid in ROW], "fail"),
        ([97, 96, 60, 94], [[pid] for pid in ROW], "fail"),
    ],
)
def test_wrong_processes_or_loads_on_four_gpus_fail_their_statements(telemetry, loads, processes, expected):
    found = {row: {"telemetry": telemetry("0,1,2,3", loads, processes)} for row in ("7b-4gpu-ddp", "7b-4gpu-fsdp")}
    ddp, fsdp = statuses("multi_gpu_litgpt", found, "four-processes-keep-four-gpus-busy", "fsdp-keeps-the-gpus-busy")
    assert ddp == expected
    assert fsdp == ("fail" if min(loads) < 80 else "pass")


def steps_of_10_s(waits):
    """Return telemetry samples of three steps. waits: seconds of each step in which only the CPU works."""
    return [
        {"t_s": 10.0 * step + second, "phase": "forward", "host_cpu_percent": 90.0 if second in waits else 10.0}
        | {f"gpu{gpu}_util_percent": 0.0 if second in waits else 95.0 for gpu in range(4)}
        | {"gpu_util_percent": 0.0 if second in waits else 95.0}
        for step in range(4)
        for second in range(10)
    ]


@pytest.mark.parametrize(
    ("waits", "expected"),
    [((7, 8, 9), "pass"), ((), "fail"), ((2, 5, 8), "fail"), ((1, 3, 5, 7, 9), "fail")],
)
def test_a_wrong_number_of_waits_for_the_cpu_in_a_step_fails_the_statement(waits, expected):
    speed = Speed(
        optimizer_steps=4,
        micro_steps=4,
        planned_micro_steps=4,
        measured_micro_steps=4,
        micro_step_s=10.0,
        step_s=10.0,
        spread=0.0,
        samples_per_s=1.0,
        train_s=40.0,
    )
    found = {"13b-4gpu-zero3-offload": {"speed": speed, "telemetry": gpu_load(steps_of_10_s(waits), speed)}}
    assert statuses("multi_gpu_litgpt", found, "offload-waits-at-the-end-of-a-step") == [expected]


def out_of_memory(step, phase):
    return {"outcome": "oom", "failure": Failure(phase=phase, step=step, kind="OutOfMemoryError", message="")}


@pytest.mark.parametrize(("phase", "expected"), [("optimizer step", "pass"), ("forward", "fail")])
def test_running_out_of_memory_in_another_phase_than_stated_fails_the_statement(phase, expected):
    found = {"xxl": out_of_memory(0, "optimizer step"), "xxl-smallest-batch": out_of_memory(0, phase)}
    assert statuses("single_gpu_blip2", found, "xxl-fails-in-its-optimizer-step") == [expected]


def statuses_of_stored_run(name, plant=lambda results: results):
    """Return the statuses by id of a stored run with a planted fault."""
    folder = RunFolder(EVIDENCE / name)
    run = folder.read_run()
    results = plant(folder.results())
    return {verdict.id: verdict.status for verdict in evaluate(suite_named(run.suite), run, results).verdicts}


@pytest.mark.parametrize(("step", "expected"), [(None, "pass"), (3, "fail")])
def test_running_out_of_memory_in_another_step_than_stated_fails_the_statement(step, expected):
    def plant(results):
        made = results["baseline"]
        failure = made.failure.model_copy(update={"step": made.failure.step if step is None else step})
        return {**results, "baseline": made.model_copy(update={"failure": failure})}

    found = statuses_of_stored_run("single_gpu_blip2-h100_94gb-full-verdict", plant)
    assert found["claim/baseline-fails-with-its-state"] == expected


def test_swapped_results_of_two_rows_fail_their_comparison():
    def swap(results):
        a, b = "reduced-precision", "mixed-precision"
        return {**results, a: results[b], b: results[a]}

    name = "single_gpu_blip2-h100_94gb-full-verdict"
    claim = "claim/mixed-needs-more-than-bf16"
    assert (statuses_of_stored_run(name)[claim], statuses_of_stored_run(name, swap)[claim]) == ("pass", "fail")
