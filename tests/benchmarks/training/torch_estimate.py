"""Estimate the time of a measured row's step with PyTorch's own estimator, RuntimeEstimator.

The estimator adds up a roofline of each operation: at three quarters of the peak rate, where two floating-point
operations count as one, or at the bandwidth. It is made for fake tensors. Here the row trains on the phantom device,
whose tensors have no values either, so that the estimator sees the operations of the labs' own code. It reads rates of
the GPU from the driver; here they are those of the card in the catalog.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.prediction import tracer
from experiments.prediction.phantom.library import Phantom
from experiments.prediction.times.clocks import total_seconds
from experiments.prediction.times.phase import PhaseTime, RecordedPhase
from experiments.prediction.times.record import PhaseRecorder
from experiments.prediction.times.step import interpolated_phases, parts_of_step, whole_phases
from experiments.suites.cards import Card, card_named
from experiments.suites.row_spec import RowSpec
from tests.benchmarks.forks import run_in_fork

TWO_TYPES = re.compile(r"Only support single out dtype got .* for (?P<name>[\w.]+)")
MODE = "operator-level-cost-model"
TYPES = {"torch.float32": "fp32", "torch.bfloat16": "bf16", "torch.float16": "fp16"}


class TorchEstimate(NamedTuple):
    """The estimated seconds of a step; None with the reason if the estimator cannot run on the row."""

    step_s: float | None
    reason: str = ""


def estimate_row(spec: RowSpec, card: str, tokens: float | None, phantom: Phantom) -> TorchEstimate:
    """Estimate the step of a row on ``card`` in a separate process. tokens: length of the batches' texts."""
    return run_in_fork(_estimate, spec, card, tokens, phantom)


def _estimate(spec: RowSpec, card: str, tokens: float | None, phantom: Phantom) -> TorchEstimate:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools import runtime_estimator

    _use_rates(card_named(card))
    setattr(runtime_estimator, "active_fake_mode", FakeTensorMode)  # noqa: B010 - a function of a module
    estimator = runtime_estimator.RuntimeEstimator()
    starts_ms = _record_starts(estimator)
    found: list[TorchEstimate] = []

    def keep(recorded: Sequence[RecordedPhase], *_: Any) -> None:
        ends_ms = [*starts_ms[1:], estimator.total_runtime]
        phases_s = [(end - start) / 1000 for start, end in zip(starts_ms, ends_ms, strict=True)]
        found.append(TorchEstimate(step_seconds(recorded, phases_s, spec.settings.accumulate, tokens)))

    setattr(tracer, "step_time", keep)  # noqa: B010 - a function of a module
    try:
        with estimator(estimate_mode_type=MODE):
            tracer.trace(spec.model_copy(update={"length": "peak"}), [spec.card], phantom)
    except (AssertionError, RuntimeError, NotImplementedError) as error:
        return TorchEstimate(None, describe_problem(str(error)))
    return found[0]


def describe_problem(error: str) -> str:
    """Return why the estimator cannot run, from the first line of its error."""
    if operation := TWO_TYPES.search(error):
        return f"it rejects results of two data types ({operation['name']})"
    return error.splitlines()[0]


def _use_rates(card: Card) -> None:
    """Give the estimator the rates of a card, which it would read from the driver. TFLOP/s and GB/s."""
    from torch.utils import _runtime_estimation

    def rate(dtype: Any) -> float:
        return card.peak_tflops.get(TYPES.get(str(dtype), "fp32"), card.peak_tflops["fp32"])

    setattr(_runtime_estimation, "get_device_tflops", rate)  # noqa: B010 - a function of a module
    setattr(_runtime_estimation, "get_gpu_dram_gbps", lambda: card.bandwidth_gb_s)  # noqa: B010 - a function of a module


def _record_starts(estimator: Any) -> list[float]:
    """Return a list to which each phase of the training adds the milliseconds that were estimated before it."""
    starts_ms: list[float] = []
    begin = PhaseRecorder.begin_phase

    def begin_phase(self: PhaseRecorder, phase: Any) -> None:
        starts_ms.append(estimator.total_runtime)
        begin(self, phase)

    setattr(PhaseRecorder, "begin_phase", begin_phase)  # noqa: B010 - a method of a class
    return starts_ms


def step_seconds(
    recorded: Sequence[RecordedPhase], phases_s: Sequence[float], accumulate: int, tokens: float | None
) -> float:
    """Return the seconds of a step from those of the recorded phases, for batches of ``tokens``."""
    times = {id(one): PhaseTime({}, {}) for one in recorded}
    for parts, seconds in zip(whole_phases(recorded), phases_s, strict=True):
        times[id(parts[0])] = PhaseTime({}, {"element-wise": seconds})
    lengths = None if tokens is None else [tokens] * accumulate
    return total_seconds(interpolated_phases(parts_of_step(recorded, accumulate), times, lengths))
