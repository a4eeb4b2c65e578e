"""Predict the time of the last traced step of a script, on each card."""

from collections.abc import Sequence

import torch

from experiments.prediction.script.traced import imports
from experiments.prediction.script.traced.watch import TrainingWatcher
from experiments.prediction.times.operations import parse
from experiments.prediction.times.phase import RecordedPhase
from experiments.prediction.times.step import program_step_time
from experiments.results.predictions import StepTime

MAX_FLOAT32_SHARE = 0.01
"""If a higher share of the floating-point operations is in 32 bit, TF32 changes the time of a step."""


def predict_step_times(
    watcher: TrainingWatcher, cards: Sequence[str], ranks: int
) -> tuple[dict[str, StepTime | None], str]:
    """Return the time of the last step on each card, and the reason if it is unknown on every card, else ""."""
    recorded = watcher.recorder.last_step()
    if reason := _reason_of_unknown_time(recorded, watcher.steps):
        return dict.fromkeys(cards), reason
    return {card: program_step_time(recorded, card, ranks) for card in cards}, ""


def _reason_of_unknown_time(recorded: Sequence[RecordedPhase], steps: int) -> str:
    if imports.captures_graphs():
        return "CUDA graphs were captured, and the time of their replays is not modeled"
    if not recorded:
        taken = "took none" if steps == 0 else "took one"
        return f"a second optimizer step is needed, and the script {taken} before the trace ended"
    if imports.uses_compiled_code():
        return "torch.compile was called"
    if torch.get_float32_matmul_precision() != "highest" and _float32_share(recorded) > MAX_FLOAT32_SHARE:
        return "TF32 is on, and no time of its matrix products was measured"
    return ""


def _float32_share(recorded: Sequence[RecordedPhase]) -> float:
    """Return the share of the floating-point operations that compute in 32 bit."""
    flop = {"Float": 0.0}
    for phase in recorded:
        for key, count in phase.operations.items():
            operation = parse(key)
            flop[operation.data_type] = flop.get(operation.data_type, 0.0) + count * operation.flop
    return flop["Float"] / (sum(flop.values()) or 1.0)
