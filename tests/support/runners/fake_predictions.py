"""Fake predictions."""

from collections.abc import Callable, Sequence
from typing import Any

from experiments.prediction.script.record import CardPrediction
from experiments.results.predictions import PeakParts, Prediction, RowStepTime, StepTime
from experiments.results.schema import Failure, Memory, Phase
from experiments.suites.cards import card_named
from experiments.suites.row_spec import RowSpec
from experiments.suites.suite import suite_named
from tests.support.results.in_memory import shot

PARAMS_GIB = 14.0


def prediction(spec: RowSpec, needed_gib: float = 70.0, **changes: Any) -> Prediction:
    """Return a prediction: 14 GiB of parameters, 14 of gradients, 28 of state, the rest activations.

    ``changes`` are other values of the prediction's fields, or of params_gib, the memory of the parameters.
    """
    params = changes.pop("params_gib", PARAMS_GIB)
    usable = card_named(spec.card).usable_gib
    rest = needed_gib - 4 * params
    shares = PeakParts(
        params_gib=params, grads_gib=params, optimizer_gib=2 * params, buffers_gib=0, activations_gib=rest
    )
    phase: Phase = "optimizer step" if spec.row.startswith("xxl") else "backward"
    fields: dict[str, Any] = {
        "spec": spec,
        "parameters": spec.base_model.parameters,
        "trainable_parameters": spec.base_model.parameters,
        "peak_gib": needed_gib,
        "reserved_gib": needed_gib + 1.0,
        "at_peak": shares,
        "peak_phase": "backward",
        "peak_step": 1,
        "optimizer_cpu_gib": 0.0,
        "needed_gib": needed_gib,
        "usable_gib": usable,
        "limited_reserved_gib": min(needed_gib + 1.0, usable),
        "retries": 0,
        "failure": failure_on_card(needed_gib, usable, phase),
        "memory": memory(params, rest, needed_gib),
        "versions": {"torch": "2.13.0"},
        "elapsed_s": 12.0,
    }
    return Prediction(**fields | changes)


def failure_on_card(needed_gib: float, usable_gib: float, phase: Phase = "backward") -> Failure | None:
    if needed_gib <= usable_gib:
        return None
    return Failure(phase=phase, step=1, requested_gib=1.5, kind="OutOfMemoryError", message="1.50 GiB more")


def card_prediction(
    card: str, needed_gib: float, usable_gib: float | None = None, time: StepTime | None = None
) -> CardPrediction:
    """Return the prediction of a script for a card. usable_gib: None for that of cards.yaml."""
    usable_gib = card_named(card).usable_gib if usable_gib is None else usable_gib
    return CardPrediction(
        card=card,
        usable_gib=usable_gib,
        needed_gib=needed_gib,
        reserved_gib=needed_gib,
        retries=0,
        failure=failure_on_card(needed_gib, usable_gib),
        time=time,
    )


def memory(params: float, activations: float, peak: float) -> Memory:
    """Return the memory at the four points of a step with this peak."""
    held = {"params_gib": params, "peak_gib": peak, "reserved_gib": peak + 1.0}
    shots = (
        shot("before forward", **held, allocated_gib=params),
        shot("after forward", **held, activations_gib=activations, allocated_gib=params + activations),
        shot("after backward", **held, grads_gib=params, allocated_gib=2 * params),
        shot("after optimizer step", **held, grads_gib=params, optimizer_gib=2 * params, allocated_gib=4 * params),
    )
    return Memory(snapshots=shots, peak_gib=peak, reserved_gib=peak + 1.0)


def stated(spec: RowSpec) -> float:
    """Return the peak memory, GiB, for which the row has the outcome that its lab states."""
    expected = suite_named(spec.suite).row(spec.row).expect.outcome
    return 100.0 if expected == "oom" else min(60.0, 0.8 * card_named(spec.card).usable_gib)


class Predictor:
    """Fake of predict: ``needs`` returns the peak memory of a row. asked: the rows that were requested."""

    def __init__(self, needs: Callable[[RowSpec], float], **changes: Any) -> None:
        self._needs, self._changes = needs, changes
        self.asked: list[RowSpec] = []

    def __call__(
        self, specs: Sequence[RowSpec], cache: Any = None, watch: Any = None, failed: Any = None, rank: int = 0
    ) -> list[Prediction]:
        found = []
        for spec in specs:
            self.asked.append(spec)
            found.append(prediction(spec, self._needs(spec), **{"rank": rank, **self._changes}))
            if watch:
                watch(spec, found[-1], False)
        return found


def step_time(step_s: float, error_share: float = 0.2, gpu_share: float = 0.9) -> RowStepTime:
    """Return a predicted time of a step; matrix products keep the GPU busy for ``gpu_share`` of it."""
    return RowStepTime(
        step_s=step_s,
        error_share=2 * error_share,
        ratio_error_share=error_share,
        gpu_busy_share=gpu_share,
        gpu_busy_share_error=0.05,
        host_s=0.1,
        link_s=0.0,
        device_s={"matrix products": gpu_share * step_s},
        planned_micro_steps=62,
        measured_on="NVIDIA H100 80GB HBM3",
    )
