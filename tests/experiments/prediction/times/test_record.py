"""The operations of a training are recorded by phase, in parts, until the last micro-step ends."""

import json

from experiments.prediction.times.record import PhaseRecorder

ADD, READ = (
    json.dumps([name, {"type": "Float", "sizes": []}]) for name in ("aten::neg.out", "aten::_local_scalar_dense")
)


class FakePhantom:
    """Fake of the phantom device, which has executed the operations in ``done``. repeated: numbers of some of them."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.repeated: set[int] = set()

    def operation_count(self) -> int:
        return len(self.done)

    def keys(self, begin: int, end: int) -> tuple[list[str], list[bool]]:
        return self.done[begin:end], [number in self.repeated for number in range(begin, end)]


def test_a_phase_ends_where_the_next_begins_and_is_split_where_the_host_waits():
    phantom = FakePhantom()
    recorder = PhaseRecorder(phantom)  # type: ignore[arg-type] # a fake
    recorder.begin_phase("forward")
    phantom.done += [ADD, READ, ADD, ADD]
    recorder.begin_phase("backward")
    phantom.done += [ADD, READ]
    recorder.begin_phase("optimizer step")
    found = [(part.phase, dict(part.operations)) for part in recorder.recorded_phases()]
    assert found == [
        ("forward", {ADD: 1, READ: 1}),
        ("forward", {ADD: 2}),
        ("backward", {ADD: 1, READ: 1}),
        ("optimizer step", {}),
    ]


def test_each_part_of_a_phase_has_the_operations_that_it_recomputes():
    phantom = FakePhantom()
    recorder = PhaseRecorder(phantom)  # type: ignore[arg-type] # a fake
    recorder.begin_phase("forward")
    phantom.done += [ADD]
    recorder.begin_phase("backward")
    phantom.done += [ADD, READ, ADD, ADD, ADD]
    phantom.repeated = {1, 4, 5}
    assert [dict(part.recomputed) for part in recorder.recorded_phases()] == [{}, {ADD: 1}, {ADD: 2}]


def test_operations_after_the_last_micro_step_are_not_part_of_the_step():
    phantom = FakePhantom()
    recorder = PhaseRecorder(phantom)  # type: ignore[arg-type] # a fake
    recorder.begin_phase("optimizer step")
    phantom.done += [ADD]
    recorder.end()
    phantom.done += [READ]
    assert [dict(part.operations) for part in recorder.recorded_phases()] == [{ADD: 1}]
