"""Compare other tools' estimates and our predictions with the measured cases.

    python -m tests.benchmarks.prediction.estimators [FOLDER]

Reads the results of measure.py (default: experiments/evidence/prediction_h200) and writes estimators.md and
estimators.json into the folder. Each estimator is used as its documentation describes, with a model on the meta device:

- ours: the prediction's peak.
- accelerate: `accelerate estimate-memory`, column "Training using Adam" for the data type; none for a
  quantized model.
- zero2, zero3: DeepSpeed's estimates of model states, one GPU, no offload; made for mixed precision.
- rule of 5: five times the size of the model.

Only our predictions depend on batch size, length, optimizer, adapters and checkpointing. Errors are relative to the
measured peak.
"""

from collections.abc import Sequence
from typing import Any

from accelerate.commands.estimate import estimate_training_usage
from accelerate.utils import calculate_maximum_sizes
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
from torch import nn

from experiments.results.predictions import Prediction
from experiments.results.schema import Result
from experiments.suites.row_spec import RowSpec
from experiments.system.files import GIB
from experiments.training.models.weights import meta_model
from tests.benchmarks.prediction.tables import (
    compared,
    folder_of,
    markdown,
    measured,
    percent,
    relative_error,
    summary,
    write,
)

DTYPES = {"32-true": "float32", "bf16-true": "float16", "bf16-mixed": "float16"}
NAMES = ("ours", "accelerate", "zero2", "zero3", "rule of 5")


def estimates(spec: RowSpec, prediction: Prediction) -> dict[str, float | None]:
    """Return the estimates for a row in GiB, by the estimators' NAMES; None for an estimator without an estimate."""
    model = meta_model(spec.base_model, "full")
    return {
        "ours": prediction.peak_gib,
        "accelerate": None if spec.settings.quantization else accelerate(model, spec),
        **deepspeed(model),
        "rule of 5": prediction.rule_of_thumb_gib,
    }


def accelerate(model: nn.Module, spec: RowSpec) -> float:
    """Return the estimate of `accelerate estimate-memory`, GiB."""
    total, _ = calculate_maximum_sizes(model.float())
    return max(estimate_training_usage(total, DTYPES[spec.settings.precision]).values()) / GIB


def deepspeed(model: nn.Module) -> dict[str, float]:
    """Return the model states on the GPU according to DeepSpeed's functions for ZeRO stages 2 and 3, GiB."""
    total = sum(parameter.numel() for parameter in model.parameters())
    layers = [sum(one.numel() for one in module.parameters(recurse=False)) for module in model.modules()]
    _, zero2 = estimate_zero2_model_states_mem_needs(total, cpu_offload=False)
    _, zero3, _ = estimate_zero3_model_states_mem_needs(total, max(layers), cpu_offload=False, cpu_offload_params=False)
    return {"zero2": zero2 / GIB, "zero3": zero3 / GIB}


def comparison(pairs: Sequence[tuple[Result, Prediction]]) -> dict[str, Any]:
    """Return the peak and each estimate with its error for each case, and each estimator's median and largest error."""
    cases: dict[str, dict[str, Any]] = {}
    for result, prediction in pairs:
        peak = result.memory.peak_gib
        assert peak is not None
        given = estimates(result.spec, prediction)
        errors = {one: None if gib is None else relative_error(gib, peak) for one, gib in given.items()}
        cases[result.spec.row] = {"measured_gib": peak, "estimates_gib": given, "errors": errors}
    all_errors = [case["errors"] for case in cases.values()]
    known = {one: [errors[one] for errors in all_errors if errors[one] is not None] for one in NAMES}
    return {"cases": cases, "errors": {one: {"cases": len(found), **summary(found)} for one, found in known.items()}}


def table_with_summary(found: dict[str, Any]) -> str:
    """Return the errors by case, followed by the summary."""
    cases = [
        [name, f"{case['measured_gib']:.2f}", *(percent(case["errors"][one]) for one in NAMES)]
        for name, case in found["cases"].items()
    ]
    by_estimator = [
        [one, values["cases"], f"{values['median']:.2%}", f"{values['worst']:.2%}"]
        for one, values in found["errors"].items()
    ]
    summarized = markdown(["estimator", "cases", "median error", "worst"], by_estimator)
    return markdown(["case", "peak measured, GiB", *NAMES], cases) + "\n" + summarized


def main() -> None:
    folder = folder_of(__doc__)
    found = comparison(compared(measured(folder)))
    write(folder, "estimators", table_with_summary(found), found)


if __name__ == "__main__":
    main()
