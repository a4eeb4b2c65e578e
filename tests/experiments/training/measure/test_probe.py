import time

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from experiments.results.schema import Device, Phase, Progress, StepCounts
from experiments.training.measure import probe as probing
from experiments.training.measure.flops import FlopCount
from experiments.training.measure.meters import StorageMeter, resident_peak_gib
from experiments.training.measure.probe import Probe, count_weights, peak_share
from experiments.training.measure.schedule import build_schedule
from experiments.training.measure.step_timer import StepTimer
from tests.support.results.in_memory import CPU, GPU
from tests.support.training.tiny_rows import GIB, spec

POINTS = ["before forward", "after forward", "after backward", "after optimizer step"]
BATCH = {"input_ids": torch.ones(2, 7, dtype=torch.int64)}


class FakeMeter:
    """Fake meter with values set by the test."""

    def __init__(self, now=0, reserved=None):
        self.now = self.high = now
        self.reserved = reserved
        self.watched = {}

    def allocated(self):
        return self.now

    def peak(self):
        return self.high

    def peak_reserved(self):
        return self.reserved

    def begin(self, phase):
        self.high = self.now

    def track(self, kind, tensors):
        self.watched[kind] = self.watched.get(kind, []) + list(tensors)

    def end_micro_step(self): ...

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def hold(self, gib):
        self.now = round(gib * GIB)
        self.high = max(self.high, self.now)


def probe_of(row, out, meter=None):
    probe = Probe(row, CPU, meter or FakeMeter(), out)
    model = nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    probe.set_model(model, lambda: [optimizer])
    probe.start(build_schedule(row, row.settings.train_samples // row.settings.batch_size))
    return probe, model, optimizer


def micro_step(probe, model, optimizer):
    """Report one micro-step of a small training as an engine does; return True if the training may end."""
    probe.before_forward(BATCH)
    loss = model(torch.ones(1, 4)).sum()
    probe.after_forward(loss)
    probe.before_backward()
    loss.backward()
    probe.after_backward()
    if probe.micro_step + 1 == probe.spec.settings.accumulate:
        probe.before_optimizer_step()
        optimizer.step()
    return probe.after_batch()


def test_a_long_training_has_memory_snapshots_in_steps_0_and_1_and_in_every_50th_step(tmp_path):
    training = probe_of(spec(batch_size=1, train_samples=120), tmp_path)
    ends = [micro_step(*training) for _ in range(120)]
    assert ends == [False] * 119 + [True]
    seen = [(shot.step, shot.micro_step, shot.point) for shot in training[0].memory().snapshots]
    assert seen == [(step, 0, point) for step in (0, 1, 50, 100) for point in POINTS]
    assert len(training[0].losses()) == 120


def test_steady_steps_are_the_steps_between_the_warm_up_and_the_profile(tmp_path, monkeypatch):
    training = probe_of(spec(batch_size=1, train_samples=40, length="verdict"), tmp_path)
    probe = training[0]
    probe.profile = FakeProfile(probe)
    steady = []
    ended = False
    while not ended:
        monkeypatch.setattr(time, "time", lambda: float(probe.micro_steps))
        ended = micro_step(*training)
        steady.append((probe.timestamps().steady_from, probe.timestamps().steady_until))
    timed = probe.profile.recorded[0]
    assert 6 <= timed < probe.micro_steps
    assert steady[:3] == [(None, None), (2.0, 2.0), (2.0, 3.0)]
    assert steady[timed - 1 :] == [(2.0, timed)] * (len(steady) - timed + 1)


@pytest.mark.parametrize(("has_profile", "ended"), [(False, 16), (True, 20)])
def test_a_training_waits_for_the_gpu_once_after_each_optimizer_step(tmp_path, monkeypatch, has_profile, ended):
    """The times vary so much that the training continues up to its maximum; then two steps are profiled."""
    training = probe_of(spec(batch_size=1, accumulate=2, train_samples=40, length="verdict"), tmp_path)
    probe, waits = training[0], []
    probe.profile = FakeProfile(probe) if has_profile else None

    def intervals_s():
        waits.append(probe.micro_steps)
        return [1.0 + number % 5 for number in range(probe.micro_steps)]

    monkeypatch.setattr(probe._timer, "intervals_s", intervals_s)
    while not micro_step(*training):
        pass
    assert (waits, probe.micro_steps) == ([8, 10, 12, 14], ended)


def test_on_a_shared_gpu_a_training_ends_after_its_minimum_number_of_steps_and_reports_no_speed(tmp_path, monkeypatch):
    """The times of the micro-steps vary so much that a training without a shared GPU would continue."""
    row = spec(batch_size=1, train_samples=40, length="verdict")
    lengths = {}
    for shared in (False, True):
        training = probe_of(row, tmp_path)
        probe = training[0]
        probe.device = CPU.model_copy(update={"shared": shared})
        monkeypatch.setattr(
            StepTimer, "intervals_s", lambda timer, probe=probe: [float(n) for n in range(1, probe.micro_steps + 1)]
        )
        while not micro_step(*training):
            pass
        lengths[shared] = probe.micro_steps
        assert (probe.speed() is None, probe.steps() is None) == (shared, not shared)
    assert lengths[True] == probe.schedule.minimum < lengths[False]
    assert probe.steps() == StepCounts(optimizer_steps=6, micro_steps=6, planned_micro_steps=40)


class FakeProfile:
    """Fake profile that records the micro-steps at which it is called."""

    STEPS = 2

    def __init__(self, probe):
        self.probe, self.recorded, self.shares = probe, [], {"gpu_idle_share": 0.25}

    def start(self):
        self.recorded.append(self.probe.micro_steps)

    def step(self):
        self.start()
        return len(self.recorded) > self.STEPS


@pytest.mark.parametrize(
    ("changes", "recorded"),
    [
        ({"length": "verdict", "accumulate": 2}, [8, 10, 12]),
        ({"length": "peak", "accumulate": 2}, [4, 6, 8]),
        ({"length": "as-taught"}, [18, 19, 20]),
        ({"length": "verdict", "train_samples": 6}, [4, 5, 6]),
    ],
)
def test_for_the_profile_additional_optimizer_steps_run_that_are_not_timed(tmp_path, monkeypatch, changes, recorded):
    started, _, ended = recorded
    training = probe_of(spec(**{"batch_size": 1, "train_samples": 20} | changes), tmp_path)
    probe = training[0]
    probe.profile = FakeProfile(probe)
    monkeypatch.setattr(probe._timer, "intervals_s", lambda: [1.0] * started + [50.0] * (probe.micro_steps - started))
    while not micro_step(*training):
        assert probe.micro_steps < 20
    assert probe.profile.recorded == recorded
    assert {shot.step for shot in probe.memory().snapshots} >= {0, 1, probe.step - 1}
    assert (probe.speed().micro_steps, probe.speed().micro_step_s, probe.speed().spread) == (ended, 1.0, 0.0)
    assert probe.speed().gpu_idle_share == 0.25


def test_a_resumed_training_profiles_its_last_steps(tmp_path):
    training = probe_of(spec(length="as-taught", batch_size=1, train_samples=20), tmp_path)
    probe = training[0]
    probe.schedule, probe.profile = probe.schedule.resumed_at(5), FakeProfile(probe)
    while not micro_step(*training):
        assert probe.micro_steps < 15
    assert probe.profile.recorded == [13, 14, 15]


def test_micro_steps_are_counted_inside_their_optimizer_step(tmp_path):
    training = probe_of(spec(batch_size=1, accumulate=3, train_samples=9), tmp_path)
    standings = []
    for _ in range(7):
        standings.append((training[0].step, training[0].micro_step, training[0].micro_steps))
        micro_step(*training)
    assert standings == [(0, 0, 0), (0, 1, 1), (0, 2, 2), (1, 0, 3), (1, 1, 4), (1, 2, 5), (2, 0, 6)]
    assert training[0].speed().optimizer_steps == 2
    assert training[0].speed().micro_steps == 7
    assert training[0].speed().planned_micro_steps == 9


def test_memory_that_is_not_of_parameters_gradients_or_optimizer_state_counts_as_activations(tmp_path):
    meter = FakeMeter()
    probe, model, optimizer = probe_of(spec(), tmp_path, meter)
    meter.now = 1000
    micro_step(probe, model, optimizer)
    shots = {shot.point: shot for shot in probe.memory().snapshots}
    parts = ("params_gib", "grads_gib", "optimizer_gib", "activations_gib")
    sizes = {point: [round(getattr(shot, part) * GIB) for part in parts] for point, shot in shots.items()}
    assert sizes == {
        "before forward": [80, 0, 0, 920],
        "after forward": [80, 0, 0, 920],
        "after backward": [80, 80, 0, 840],
        "after optimizer step": [80, 80, 168, 672],
    }


def test_the_peak_of_each_phase_is_recorded(tmp_path):
    meter = FakeMeter()
    probe = Probe(spec(), CPU, meter, tmp_path)
    phases: tuple[tuple[Phase, int, int], ...] = (
        ("forward", 5, 2),
        ("backward", 9, 3),
        ("optimizer step", 4, 1),
        ("forward", 3, 1),
    )
    for phase, most, left in phases:
        probe.enter_phase(phase)
        meter.hold(most)
        meter.hold(left)
    memory = probe.memory()
    assert memory.peak_by_phase_gib == {"load": 0, "forward": 5, "backward": 9, "optimizer step": 4}
    assert (memory.peak_gib, memory.reserved_gib) == (9, None)


def test_the_highest_reserved_memory_is_recorded(tmp_path):
    meter = FakeMeter(reserved=3 * GIB)
    probe = Probe(spec(), CPU, meter, tmp_path)
    probe.enter_phase("forward")
    meter.reserved = GIB
    assert probe.memory().reserved_gib == 3


def test_the_longest_batch_is_recorded_and_every_tensor_is_tracked(tmp_path):
    meter = FakeMeter()
    probe, model, _ = probe_of(spec(), tmp_path, meter)
    assert len(meter.watched["params"]) == len(list(model.parameters()))
    for tokens in (7, 12, 5):
        probe.before_forward({"input_ids": torch.ones(2, tokens), "pixel_values": torch.ones(2, 3)})
    assert probe.max_tokens == 12
    assert len(meter.watched["batch"]) == 3 * 2
    probe.close()


def test_the_progress_file_has_the_position_of_the_training(tmp_path):
    meter = FakeMeter()
    training = probe_of(spec(batch_size=1, train_samples=10), tmp_path, meter)
    meter.hold(2)
    for _ in range(4):
        micro_step(*training)
    training[0].write_progress(at_once=True)
    progress = Progress.model_validate_json((tmp_path / "progress.json").read_bytes())
    assert (progress.phase, progress.step, progress.micro_steps) == ("optimizer step", 4, 4)
    assert (progress.planned_micro_steps, progress.allocated_gib, progress.memory.peak_gib) == (10, 2, 2)
    assert progress.device == CPU
    assert progress.left_s > 0


def test_the_progress_file_is_written_at_most_twice_a_second(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    probe = Probe(spec(), CPU, FakeMeter(), tmp_path)
    written = []
    monkeypatch.setattr(probing, "write_atomically", lambda path, text: written.append(now[0]))
    for _ in range(21):
        probe.write_progress()
        now[0] += 0.125
    probe.write_progress(at_once=True)
    assert written == [100.0, 100.5, 101.0, 101.5, 102.0, 102.5, 102.625]


@pytest.mark.parametrize(("phase_s", "written"), [(0.3, ["forward", "backward", "optimizer step"]), (0.05, [])])
def test_each_phase_of_a_long_micro_step_is_written_to_the_progress_file(tmp_path, monkeypatch, phase_s, written):
    now, phases = [100.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    training = probe_of(spec(batch_size=1, train_samples=10), tmp_path)
    probe = training[0]
    begin = probe._recorder.begin

    def begin_later(phase):
        now[0] += phase_s
        begin(phase)

    monkeypatch.setattr(probe._recorder, "begin", begin_later)
    micro_step(*training)
    monkeypatch.setattr(probing, "write_atomically", lambda path, text: phases.append(probe.phase))
    micro_step(*training)
    assert phases == written


def test_a_probe_without_steps_has_no_measurements(tmp_path):
    probe = Probe(spec(), CPU, FakeMeter(), tmp_path)
    assert probe.speed() is None
    assert probe.losses() == ()
    assert probe.memory().snapshots == ()
    probe.write_progress(at_once=True)
    assert Progress.model_validate_json((tmp_path / "progress.json").read_bytes()).left_s is None


def test_arithmetic_operations_of_forward_backward_and_recomputation_are_counted():
    layers = nn.Sequential(nn.Linear(8, 16, bias=False), nn.ReLU(), nn.Linear(16, 2, bias=False))
    batch = torch.ones(4, 8, requires_grad=True)
    first, second = 2 * 4 * 8 * 16, 2 * 4 * 16 * 2
    with FlopCount() as once:
        layers(batch).sum().backward()
    with FlopCount() as recomputed:
        checkpoint(layers, batch, use_reentrant=False).sum().backward()
    assert once.total == 3 * (first + second)
    assert recomputed.total == 3 * (first + second) + first


def test_arithmetic_operations_of_the_first_micro_step_are_divided_by_its_samples(tmp_path):
    training = probe_of(spec(batch_size=2, train_samples=8), tmp_path, StorageMeter())
    for _ in range(3):
        micro_step(*training)
    speed = training[0].speed()
    assert speed.tflop_per_sample == pytest.approx(2 * (2 * 4 * 4) / 2 / 1e12)
    assert speed.tflops_per_s == pytest.approx(speed.tflop_per_sample * speed.samples_per_s)


@pytest.mark.parametrize(("shape", "with_images", "rate"), [((2, 6), False, 3.0), ((2, 6), True, 1.0)])
def test_the_rate_of_arithmetic_operations_is_that_of_the_timed_tokens(tmp_path, shape, with_images, rate):
    probe = probe_of(spec(batch_size=2, train_samples=8), tmp_path, StorageMeter())[0]
    for step in range(4):
        batch = {"input_ids": torch.zeros((2, 2) if step == 0 else shape, dtype=torch.int64)}
        probe.before_forward(batch | ({"pixel_values": torch.zeros(1)} if with_images else {}))
        torch.ones(2, 4) @ torch.ones(4, 4)
        probe.after_batch()
    speed = probe.speed()
    assert speed.tflops_per_s == pytest.approx(rate * speed.tflop_per_sample * speed.samples_per_s)


@pytest.fixture
def tf32():
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize(("precision", "peak"), [("32-true", 19.5), ("bf16-true", 312.0), ("bf16-mixed", 312.0)])
def test_the_share_of_the_peak_rate_refers_to_the_peak_of_the_row_s_data_type(precision, peak):
    assert peak_share(10.0, GPU, spec(precision=precision).settings) == pytest.approx(10 / peak)


def test_the_share_of_the_peak_rate_refers_to_the_peak_of_tf32_if_tf32_is_enabled(tf32):
    assert peak_share(10.0, GPU, spec().settings) == pytest.approx(10 / 156)


@pytest.mark.parametrize(
    ("rate", "device", "settings"),
    [(None, GPU, {}), (1.0, CPU, {}), (1.0, GPU, {"quantization": {"kind": "nf4"}})],
)
def test_a_card_with_an_unknown_peak_rate_gives_no_share_of_it(rate, device, settings):
    assert peak_share(rate, device, spec(**settings).settings) is None


def test_a_data_type_that_the_card_lacks_gives_no_share_of_the_peak_rate():
    v100 = Device(kind="cuda", name="V100", card="v100_32gb", host_cpus=1, host_memory_gib=1.0)
    assert peak_share(1.0, v100, spec(precision="bf16-true").settings) is None


def test_an_element_of_a_4_bit_parameter_counts_as_two_weights():
    packed = type("Params4bit", (nn.Parameter,), {})(torch.ones(10), requires_grad=False)
    assert (count_weights(nn.Parameter(torch.ones(10))), count_weights(packed)) == (10, 20)


def test_the_peak_of_resident_memory_is_never_below_an_earlier_one():
    before = resident_peak_gib()
    allocated = bytearray(200 * 2**20)
    assert resident_peak_gib() >= before > 0.05
    assert len(allocated) == 200 * 2**20
