"""Statements about what nvtop shows, evaluated from telemetry samples; each test changes the samples in one way."""

from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.results.gpu_load import (
    CPU_WAIT_INTERVAL,
    CPU_WAIT_SHARE,
    STEADY_UTILIZATION,
    gpu_load,
    read_samples,
    training_samples,
    training_utilization,
)
from experiments.results.quantities import value_of
from experiments.results.run_folder import RunFolder
from experiments.results.schema import Result
from experiments.suites.suite import Quantity
from tests.support.results.evidence import EVIDENCE

FOUR = EVIDENCE / "multi_gpu_litgpt-a100_80gb-full-verdict"
Edit = Callable[[list[dict[str, float | str]]], list[dict[str, float | str]]]


def stored_row(row: str) -> tuple[Result, list[dict[str, float | str]]]:
    return RunFolder(FOUR).results()[row], read_samples(FOUR / "telemetry" / f"{row}.csv")


def value_with(row: str, quantity: Quantity, edit: Edit) -> float | None:
    """Return a quantity of a stored row from its samples after ``edit``."""
    result, samples = stored_row(row)
    load = gpu_load(edit(samples), result.speed)
    return value_of(quantity, result.model_copy(update={"telemetry": load}))


def unchanged(samples: list[dict[str, float | str]]) -> list[dict[str, float | str]]:
    return samples


def with_idle_gpu_2(samples: list[dict[str, float | str]]) -> list[dict[str, float | str]]:
    return [sample | {"gpu2_util_percent": 0.0} for sample in samples]


def with_gpus_idle_half_the_time(samples: list[dict[str, float | str]]) -> list[dict[str, float | str]]:
    return [sample | {"gpu_util_percent": 50.0} for sample in samples]


def working_while_the_cpu_works(samples: list[dict[str, float | str]]) -> list[dict[str, float | str]]:
    return [sample | {"gpu_util_percent": 45.0} for sample in samples]


def with_idle_cpu(samples: list[dict[str, float | str]]) -> list[dict[str, float | str]]:
    return [sample | {"host_cpu_percent": 6.0} for sample in samples]


def every_other_sample_waits(samples: list[dict[str, float | str]]) -> list[dict[str, float | str]]:
    load: tuple[dict[str, float | str], ...] = (
        {"gpu_util_percent": 0.0, "host_cpu_percent": 90.0},
        {"gpu_util_percent": 45.0, "host_cpu_percent": 6.0},
    )
    return [sample | load[number % 2] for number, sample in enumerate(samples)]


@pytest.mark.parametrize(
    ("row", "quantity", "edit", "low", "high"),
    [
        ("7b-1gpu", "gpu_util_percent", unchanged, 90, 100),
        ("7b-1gpu", "gpu_util_percent", with_gpus_idle_half_the_time, 50, 50),
        ("7b-4gpu-ddp", "gpu_util_percent", unchanged, 80, 100),
        ("7b-4gpu-fsdp", "gpu_util_percent", unchanged, 80, 100),
        ("7b-4gpu-fsdp", "gpu_util_percent", with_idle_gpu_2, 0, 0),
        ("7b-4gpu-ddp", "gpu_util_percent", with_idle_gpu_2, 0, 0),
        ("13b-4gpu-zero3-offload", "cpu_wait_share", unchanged, 0.1, 0.5),
        ("13b-4gpu-zero3-offload", "cpu_wait_share", working_while_the_cpu_works, 0, 0),
        ("13b-4gpu-zero3-offload", "cpu_wait_share", with_idle_cpu, 0, 0),
        ("13b-4gpu-zero3-offload", "cpu_waits_per_step", unchanged, 0.8, 1.2),
        ("13b-4gpu-zero3-offload", "cpu_waits_per_step", every_other_sample_waits, 10, 20),
        ("7b-4gpu-fsdp", "cpu_wait_share", unchanged, 0, 0),
    ],
)
def test_values_computed_from_stored_telemetry_are_those_that_nvtop_shows(
    row: str, quantity: Quantity, edit: Edit, low: float, high: float
) -> None:
    value = value_with(row, quantity, edit)
    assert value is not None
    assert low <= value <= high


def test_idle_seconds_before_and_after_the_training_do_not_count() -> None:
    result, samples = stored_row("7b-1gpu")
    assert result.speed is not None
    training = training_samples(samples, result.speed)
    assert [sample["gpu_util_percent"] for sample in training] == [83.0, 94.0, 86.0, 92.0, 100.0]
    assert training_samples(samples, None) == training


def test_the_load_of_other_gpus_is_measured_during_the_training_only() -> None:
    result, samples = stored_row("7b-1gpu")
    loaded = [sample | {"other_gpu_util_percent": 0.0 if sample["phase"] != "load" else 70.0} for sample in samples]
    assert gpu_load(loaded, result.speed)["other_gpu_util_percent_max"] == 0.0
    loaded[-6] |= {"other_gpu_util_percent": 3.0}
    assert gpu_load(loaded, result.speed)["other_gpu_util_percent_max"] == 3.0


def test_telemetry_adds_missing_values_to_a_result_and_keeps_the_recorded_ones(tmp_path: Path) -> None:
    result, samples = stored_row("7b-1gpu")
    assert result.telemetry[STEADY_UTILIZATION] == 92.0
    assert '"steady_gpu_util_percent"' not in (FOUR / "results.jsonl").read_text()
    recorded = result.telemetry["training_gpu_util_percent_mean"]
    assert gpu_load(samples, result.speed)["training_gpu_util_percent_mean"] != recorded


@pytest.mark.parametrize("text", ["", "t_s,phase\n", "t_s,phase,gpu_util_percent\n1.0,load,\nx,forward,9\n"])
def test_without_samples_of_the_training_there_is_no_value_of_gpu_load(tmp_path: Path, text: str) -> None:
    path = tmp_path / "telemetry.csv"
    assert gpu_load(read_samples(path), None) == {}
    path.write_text(text)
    assert gpu_load(read_samples(path), None) == {}


def test_without_the_load_of_the_cpu_there_is_no_waiting_time() -> None:
    result, samples = stored_row("13b-4gpu-zero3-offload")
    bare = [{key: value for key, value in sample.items() if key != "host_cpu_percent"} for sample in samples]
    assert CPU_WAIT_SHARE not in gpu_load(bare, result.speed)


def samples_of(*loads: tuple[float, float], every_s: float = 2.0) -> list[dict[str, float | str]]:
    """Return samples of the training with these loads of GPU and processors, in percent."""
    return [
        {"t_s": number * every_s, "phase": "forward", "gpu_util_percent": gpu, "host_cpu_percent": cpu}
        for number, (gpu, cpu) in enumerate(loads)
    ]


WAITS, WORKS = (4.9, 50.0), (5.0, 50.0)


@pytest.mark.parametrize(
    ("loads", "share", "interval_s"),
    [
        ([WORKS, WAITS, WAITS, WORKS], 0.5, None),
        ([WORKS, WAITS, WORKS, WORKS, WAITS, WORKS], 1 / 3, 6.0),
        ([WAITS, WORKS, WAITS, WORKS, WAITS, WORKS], 0.5, 4.0),
        ([(4.9, 49.9), WORKS], 0.0, None),
    ],
)
def test_gpus_wait_for_the_cpu_if_they_are_idle_and_processors_are_busy(
    loads: list[tuple[float, float]], share: float, interval_s: float | None
) -> None:
    load = gpu_load(samples_of(*loads), None)
    assert (load[CPU_WAIT_SHARE], load.get(CPU_WAIT_INTERVAL)) == (share, interval_s)


def test_idle_samples_after_the_last_work_of_a_gpu_do_not_count() -> None:
    samples = samples_of((0.0, 1.0), (1.0, 1.0), (90.0, 1.0), (0.0, 1.0))
    samples.insert(0, {"t_s": 0.0, "phase": "load", "gpu_util_percent": 50.0})
    assert training_utilization(samples) == [0.0, 1.0, 90.0]
    assert training_utilization(samples_of((0.0, 1.0), (0.0, 1.0))) == [0.0, 0.0]
    assert training_samples(samples, None) == samples[1:4]


@pytest.mark.parametrize(("steps", "number"), [(0, 3), (1, 3), (2, 3), (3, 5), (9, 9)])
def test_samples_after_the_last_step_do_not_belong_to_the_training(steps: int, number: int) -> None:
    """The first sample is at the end of the first micro-step; a step takes four seconds."""
    result, _ = stored_row("7b-1gpu")
    assert result.speed is not None
    speed = result.speed.model_copy(update={"step_s": 4.0, "optimizer_steps": steps})
    assert len(training_samples(samples_of(*[(90.0, 1.0)] * 9), speed)) == number


@pytest.mark.parametrize(
    ("begin_s", "end_s", "utilization"),
    [(9.0, 10.0, None), (8.0, 10.0, 90.0), (2.5, 10.0, 90.0), (1.0, 3.0, 0.0), (9.5, 12.0, 60.0)],
)
def test_the_steady_utilization_is_that_of_the_steps_after_the_warm_up(
    begin_s: float, end_s: float, utilization: float | None
) -> None:
    """The GPU works from 3.5 to 10.0. A sample has the utilization of the second before it."""
    loads = [(90.0 if 3.5 <= number / 2 <= 10 else 60.0 if number > 20 else 0.0, 1.0) for number in range(24)]
    samples = samples_of(*loads, every_s=0.5)
    assert gpu_load(samples, None, (begin_s, end_s)).get(STEADY_UTILIZATION) == utilization


def test_telemetry_values_that_are_not_numbers_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.csv"
    path.write_text("t_s,phase,gpu_util_percent,x\n1.0,forward,9,inf\n2.0,forward,no,1,2\n3.0,forward\n,forward,9\n")
    assert read_samples(path) == [
        {"t_s": 1.0, "phase": "forward", "gpu_util_percent": 9.0},
        {"t_s": 2.0, "phase": "forward", "x": 1.0},
        {"t_s": 3.0, "phase": "forward"},
    ]


def test_the_utilization_of_several_gpus_is_that_of_the_least_used_one() -> None:
    columns: dict[str, float | str] = {"gpu0_util_percent": 80.0, "gpu10_util_percent": 60.0, "gpux_util_percent": 1.0}
    load = gpu_load([sample | columns for sample in samples_of((70.0, 1.0), (70.0, 1.0))], None)
    assert load[STEADY_UTILIZATION] == 60.0
