"""Estimates next to the predicted step times: PyTorch's own estimator runs, or the table says why not."""

import json

import pytest

from experiments.prediction.times.phase import PhaseTime, RecordedPhase
from experiments.prediction.times.schedule import Schedule
from experiments.results.schema import Speed
from tests.benchmarks.prediction.tables import EVIDENCE, relative_error
from tests.benchmarks.training.step_times import Waits, reasons, step_s_from_medians
from tests.benchmarks.training.torch_estimate import describe_problem, step_seconds
from tests.support.training.tiny_rows import spec

FOLDERS = [EVIDENCE.parent / "prediction_h100", EVIDENCE]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_row_has_an_estimate_of_pytorch_or_the_table_states_why_not(folder):
    found = json.loads((folder / "step_times.json").read_text())
    assert all(bool(one["torch_s"]) != bool(one["torch_reason"]) for one in found["rows"])
    text = (folder / "step_times.md").read_text()
    assert all(line in text for line in reasons(found["rows"]))
    assert len(found["rows"]) == len((folder / "step_times.jsonl").read_text().splitlines())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_error_of_predictions_is_smaller_than_that_of_every_simpler_estimate(folder):
    found = json.loads((folder / "step_times.json").read_text())
    simpler = [found[name]["mean"] for name in ("roofline_errors", "factor_errors", "torch_errors")]
    assert found["mean_error"] < min(simpler)
    errors = [relative_error(one["torch_s"], one["measured_s"]) for one in found["rows"] if one["torch_s"]]
    assert found["torch_errors"]["mean"] == pytest.approx(sum(map(abs, errors)) / len(errors))


def test_the_reason_why_a_row_has_no_estimate_names_the_operation_that_the_estimator_rejects():
    place = "in the forward pass of step 0 (counted from 0)"
    error = f"AssertionError {place}: Only support single out dtype got {{a, b}} for aten.attend (f.py:1)"
    assert describe_problem(error) == "it rejects results of two data types (aten.attend)"
    assert describe_problem("out of memory\nmore") == "out of memory"


def test_the_time_of_a_step_is_interpolated_to_a_batch_of_average_length():
    recorded = [
        RecordedPhase("forward", 100, {}),
        RecordedPhase("backward", 100, {}),
        RecordedPhase("forward", 200, {}),
        RecordedPhase("backward", 200, {}),
        RecordedPhase("optimizer step", 200, {}),
    ]
    seconds = [1.0, 2.0, 3.0, 6.0, 0.5]
    assert step_seconds(recorded, seconds, 1, None) == pytest.approx(3.0 + 6.0 + 0.5)
    assert step_seconds(recorded, seconds, 1, 150) == pytest.approx(2.0 + 4.0 + 0.5)


def test_a_run_waits_for_the_gpu_after_its_minimum_number_of_micro_steps_and_older_runs_also_within_steps():
    row = spec(batch_size=1, accumulate=2, train_samples=40, length="verdict")
    speed = Speed.model_construct(planned_micro_steps=40)
    for content, expected in (({}, [8, 10, 12]), ({"waited_in_steps": True}, [8, 9, 10, 11, 12])):
        waits = Waits.of_row(content, row, speed)
        assert [number for number in range(1, 13) if waits.follow(number)] == expected
    assert Waits.of_row({}, row.model_copy(update={"length": "as-taught"}), speed) is None


@pytest.mark.parametrize(("waits", "step_s"), [(None, 3 + 3), (Waits(1, 1), 4 + 4), (Waits(1, 2), 4 + 3)])
def test_after_a_wait_of_the_host_the_gpu_waits_for_the_host(waits, step_s):
    """In each of the two micro-steps of a step, the host needs one second for the only operation, and the GPU three."""
    schedule = Schedule.build([0], [{"forward": 1.0}], [("copies", 3.0)])
    forward = PhaseTime({"forward": 1.0}, {"copies": 3.0}, schedule=schedule)
    backward, optimizer = (PhaseTime({}, {}, phase=phase) for phase in ("backward", "optimizer step"))
    step = [forward, backward, forward, backward, optimizer]
    assert step_s_from_medians([step] * 4, waits=waits) == step_s
