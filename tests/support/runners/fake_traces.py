"""Fake traces of the programs that train a model in a loop of the labs."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from experiments.prediction import loop_fit
from experiments.prediction.script import trace
from experiments.prediction.script.record import ModuleMemory, ScriptPrediction
from experiments.results.predictions import StepTime
from experiments.suites.row_spec import RowSpec
from tests.support.runners.fake_predictions import card_prediction, prediction


class FakeTracer:
    """Fake of trace_script: ``needs`` returns the peak memory of the row that a program trains. time: of a step."""

    def __init__(
        self, needs: Callable[[RowSpec], float], params_gib: float = 1.0, time: StepTime | None = None
    ) -> None:
        self._needs, self._params_gib, self._time = needs, params_gib, time

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Replace trace_script in the commands predict and fit."""
        for module in (trace, loop_fit):
            monkeypatch.setattr(module, "trace_script", self)

    def __call__(
        self, command: Sequence[str], cards: Sequence[str], print_line: Callable[[str], None], *rest: Any
    ) -> list[ScriptPrediction]:
        print_line(f"tracing {rest[1]}")
        spec = RowSpec.model_validate_json(command[-1])
        need = self._needs(spec)
        row = prediction(spec, need, params_gib=self._params_gib)
        fields = (
            "parameters",
            "trainable_parameters",
            "peak_gib",
            "reserved_gib",
            "at_peak",
            "peak_phase",
            "peak_step",
        )
        modules = (ModuleMemory(module="layers.0", phase="forward", category="activations", size_gib=need / 2),)
        return [
            ScriptPrediction(
                rank=0,
                ranks=spec.settings.devices,
                model="LlamaForCausalLM",
                sample=f"a text of {spec.settings.max_length} tokens",
                optimizers=("AdamW",),
                steps=2,
                ended="ended",
                host_gib=0.5,
                cards=tuple(card_prediction(name, need, time=self._time) for name in cards),
                timeline_gib=(need,),
                phases=(),
                modules=modules,
                lines=(),
                blocks=(),
                notes=(),
                versions={},
                elapsed_s=1.0,
                **{name: getattr(row, name) for name in fields},
            )
        ]
