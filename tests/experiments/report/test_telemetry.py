"""Reading a complete or an incomplete telemetry.csv."""

from pathlib import Path

import pytest

from experiments.report.telemetry import MAX_SAMPLES, Telemetry, read_telemetry
from tests.support.results.handwritten import telemetry_csv


def read_text_as_telemetry(tmp_path: Path, text: str) -> Telemetry:
    path = tmp_path / "telemetry.csv"
    path.write_text(text)
    return read_telemetry(path)


def test_telemetry_columns_without_values_are_left_out(tmp_path: Path) -> None:
    telemetry = read_text_as_telemetry(tmp_path, telemetry_csv(gpus=0, samples=3))
    assert telemetry.every_nth == 1
    assert set(telemetry.columns) == {"t_s", "host_cpu_percent", "host_memory_gib", "process_memory_gib"}
    assert telemetry.columns["t_s"] == (0.0, 0.5, 1.0)


def test_telemetry_with_many_samples_is_thinned(tmp_path: Path) -> None:
    telemetry = read_text_as_telemetry(tmp_path, telemetry_csv(gpus=1, samples=MAX_SAMPLES * 3))
    assert telemetry.every_nth == 3
    assert len(telemetry.columns["t_s"]) == MAX_SAMPLES
    assert telemetry.columns["t_s"][1] == 1.5


def test_incomplete_lines_and_missing_values_are_accepted(tmp_path: Path) -> None:
    telemetry = read_text_as_telemetry(tmp_path, "t_s,gpu_power_w\n0,100\n1,nan\n2,N/A\n3")
    assert telemetry.columns == {"t_s": (0.0, 1.0, 2.0, 3.0), "gpu_power_w": (100.0, None, None, None)}


def test_a_file_without_samples_has_no_telemetry(tmp_path: Path) -> None:
    assert read_telemetry(tmp_path / "telemetry.csv") is None
    assert read_text_as_telemetry(tmp_path, "") is None
    assert read_text_as_telemetry(tmp_path, "t_s,gpu_power_w\n") is None


@pytest.mark.parametrize("samples", [MAX_SAMPLES, MAX_SAMPLES + 1, 2 * MAX_SAMPLES - 1, 2 * MAX_SAMPLES + 1])
def test_at_most_max_samples_and_at_least_half_as_many_are_kept(tmp_path: Path, samples: int) -> None:
    telemetry = read_text_as_telemetry(tmp_path, telemetry_csv(gpus=0, samples=samples))
    assert MAX_SAMPLES / 2 <= len(telemetry.columns["t_s"]) <= MAX_SAMPLES
