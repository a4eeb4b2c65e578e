"""Calibration of operation times: its table, how it resumes, and its errors. Fake: the GPU."""

import json
from typing import Any

import pytest

from experiments.cli.app import main
from experiments.errors import InputError
from experiments.prediction.times import calibrate as module
from experiments.prediction.times.calibrate import calibrate
from experiments.prediction.times.operations import parse
from experiments.prediction.times.replay import NotReplayable, measure
from experiments.prediction.times.table import Machine, OperationTime, Table, read_lines

MACHINE = Machine(card="h100_80gb", gpu="NVIDIA H100", host="a host", torch="2.11", command="a test", date="2026-11-28")
KEYS = [
    json.dumps(["aten::relu.out", *2 * [{"type": "Float", "sizes": [size]}]], separators=(",", ":"))
    for size in (8, 16, 32)
]


class FakeGpu:
    """A fake GPU: each operation takes 1 ms, except those of ``rejected`` elements, which fail."""

    def __init__(self, rejected: int = 0, killed_at: int = 0) -> None:
        self.rejected, self.killed_at = rejected, killed_at
        self.measured: list[Any] = []

    def measure(self, operation) -> OperationTime:
        if operation.elements == self.killed_at:
            raise KeyboardInterrupt
        if operation.elements == self.rejected:
            raise NotReplayable("not in this PyTorch")
        self.measured.append(operation.elements)
        return OperationTime(1e-3, 1e-5)


@pytest.fixture
def run_calibration(tmp_path, monkeypatch):
    """Calibrate on the fake GPU; return the table's file and the printed lines."""

    def calibrate_on(gpu: FakeGpu, machine: Machine = MACHINE):
        lines: list[str] = []
        monkeypatch.setattr(module, "measure", gpu.measure)
        calibrate(KEYS, tmp_path / "table.jsonl", machine, lines.append)
        return tmp_path / "table.jsonl", lines

    return calibrate_on


def test_the_table_names_its_machine_and_has_the_time_of_each_operation(run_calibration):
    table, lines = run_calibration(FakeGpu())
    assert Machine.model_validate(read_lines(table)[0]) == MACHINE
    found = {key: times.device_s for key, times in Table.read(table).measured.items()}
    assert found == dict.fromkeys(KEYS, 1e-3)
    assert lines == ["measured 3 operations"]


def test_an_operation_that_cannot_run_is_recorded_and_not_tried_again(run_calibration):
    table, _ = run_calibration(FakeGpu(rejected=16))
    assert [line.get("problem") for line in read_lines(table)[1:]] == [None, "not in this PyTorch", None]
    again = FakeGpu()
    run_calibration(again)
    assert again.measured == []


def test_an_interrupted_calibration_resumes(run_calibration):
    with pytest.raises(KeyboardInterrupt):
        run_calibration(FakeGpu(killed_at=16))
    again = FakeGpu()
    table, _ = run_calibration(again)
    assert again.measured == [16, 32]
    assert len(Table.read(table).measured) == len(KEYS)


def test_an_operation_that_breaks_the_gpu_ends_the_calibration_which_resumes_after_it(run_calibration, monkeypatch):
    def reject() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with monkeypatch.context() as broken:
        broken.setattr("torch.cuda.empty_cache", reject)
        with pytest.raises(InputError, match=r"aten::relu.out failed, and the GPU now rejects.*run the command again"):
            run_calibration(FakeGpu(rejected=8))
    again = FakeGpu()
    run_calibration(again)
    assert again.measured == [16, 32]


def test_an_operation_during_which_the_process_died_is_not_tried_again(run_calibration, tmp_path):
    (tmp_path / "table.trying").write_text(KEYS[1])
    table, _ = run_calibration(FakeGpu())
    problems = {line["key"]: line.get("problem") for line in read_lines(table)[1:]}
    assert problems == {KEYS[0]: None, KEYS[1]: "the process died", KEYS[2]: None}


def test_an_operation_whose_line_in_the_table_is_incomplete_is_measured_again(run_calibration):
    table, _ = run_calibration(FakeGpu())
    table.write_text(table.read_text()[:-20])
    again = FakeGpu()
    run_calibration(again)
    assert again.measured == [32]
    assert len(Table.read(table).measured) == len(KEYS)


def test_the_table_of_another_gpu_is_not_extended(run_calibration):
    run_calibration(FakeGpu())
    with pytest.raises(InputError, match="measured on NVIDIA H100 with PyTorch"):
        run_calibration(FakeGpu(), MACHINE.model_copy(update={"gpu": "NVIDIA A100"}))


def test_calibration_without_a_gpu_is_rejected_in_one_line(capsys):
    assert main(["calibrate"]) == 2
    assert "testbed calibrate measures a GPU, and this machine has none" in capsys.readouterr().err


def test_attention_within_packed_texts_is_not_measured_because_the_lengths_are_unknown():
    with pytest.raises(NotReplayable, match="lengths of the texts"):
        measure(parse('["aten::_flash_attention_forward.default"]'))


def test_paged_memory_of_bitsandbytes_is_not_measured():
    state = {"type": "Float", "sizes": [8], "host": 1}
    with pytest.raises(NotReplayable, match="paged memory"):
        measure(parse(json.dumps(["bitsandbytes::optimizer_update_32bit.default", "adam", state])))
