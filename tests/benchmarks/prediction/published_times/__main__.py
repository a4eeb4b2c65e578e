"""Compare published times of training steps on other cards with the times that the project predicts.

    python -m tests.benchmarks.prediction.published_times [--record]   without a GPU

Labels are in experiments/evidence/prediction_published/times.yaml, the operations of their trainings in
time_operations.jsonl.gz beside it; --record traces the trainings again and writes that file. Each label is predicted
from the operations that were measured on an H100, and nothing else. Writes times.md and times.json into the same
folder. Beside each prediction: the errors with one and with two more constants, which describe the host's time to
allocate memory and are fitted to the other labels of the card only; the error that the source states for its own
estimator; the roofline; the roofline times one constant, fitted to the other labels of the card only. Two more tables
compare single operations that the source measured: linear layers, and the sum of those of a forward pass.
"""

import sys
from collections.abc import Sequence
from typing import Any

from experiments.prediction.phantom.library import load
from experiments.prediction.times.table import Table
from experiments.system.files import cache_folder
from tests.benchmarks.forks import run_in_fork
from tests.benchmarks.prediction.published import FOLDER
from tests.benchmarks.prediction.published_times.labels import (
    PublishedTimes,
    TrainingOperations,
    published_times,
    read_operations,
    write_operations,
)
from tests.benchmarks.prediction.published_times.linear_layers import compare_layers
from tests.benchmarks.prediction.published_times.predict import (
    MEASURED_TABLE,
    Comparison,
    compare_labels,
    compare_operations,
    errors_of_card,
    mean_error,
)
from tests.benchmarks.prediction.tables import markdown, percent, write

HEAD = [
    "card and training",
    "forward measured, ms",
    "predicted",
    "backward measured, ms",
    "predicted",
    "error of the sum",
    "error with allocation, leave one out",
    "error with allocation and clearing, leave one out",
    "NeuSight's error",
    "roofline",
    "roofline times a constant, leave one out",
]
ERRORS = ("error", "allocation_error", "clearing_error", "neusight_error", "roofline_error", "factor_error")
OURS = ERRORS[:3]
LAYER_HEAD = ["linear layer, rows x columns x depth", "measured, ms", "with a bias", "error", "without", "error"]
FORWARD_HEAD = ["card and training", "forward measured, ms", "sum of its operations, ms", "rest, ms", "allocated, GiB"]


def record_all(times: PublishedTimes) -> None:
    """Trace each training in a separate process and write their operations."""
    phantom = load(cache_folder())
    from experiments.prediction import tracer
    from tests.benchmarks.prediction.published_times.record import record_training

    tracer.import_libraries(phantom)
    found: dict[str, TrainingOperations] = {}
    for label in times.predicted:
        if label.training not in found:
            found[label.training] = run_in_fork(record_training, label, times.models[label.model], phantom)
            print(label.training, flush=True)
    write_operations(found)


def summarize(times: PublishedTimes, comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Return the errors of all labels, the mean error of each estimate by card, and the compared operations."""
    labels: list[dict[str, Any]] = []
    means: dict[str, dict[str, Any]] = {}
    for card, board in times.cards.items():
        found = errors_of_card([one for one in comparisons if one.label.card == card])
        mean = {name: mean_error(one[name] for one in found) for name in ERRORS}
        reached = {name: mean[name] <= board.goal for name in OURS} if board.goal else {}
        labels += found
        backward = mean_error(one["backward_error"] for one in found)
        means[card] = {"labels": len(found), "goal": board.goal, **mean, "backward_error": backward, "reached": reached}
    layers, operations = compare_layers(times, Table.read(MEASURED_TABLE)), compare_operations(times, comparisons)
    return {"labels": labels, "means": means, "linear_layers": layers, "forward_operations": operations}


def table(times: PublishedTimes, found: dict[str, Any]) -> str:
    """Return the table of all labels, the mean errors by card with the verdicts, and the source."""
    lines = markdown(HEAD, [_label_row(one) for one in found["labels"]])
    head = [
        "mean error",
        "labels",
        *HEAD[5:],
        "error of the backward pass",
        "goal",
        "reached",
        "reached with allocation",
        "reached with allocation and clearing",
    ]
    means = markdown(head, [_mean_row(card, one) for card, one in found["means"].items()])
    reasons = {name: model.excluded for name, model in times.models.items() if model.excluded}
    excluded = [f"- {name} is not predicted: {reason}" for name, reason in reasons.items()]
    layers = markdown(LAYER_HEAD, [_layer_row(one) for one in found["linear_layers"]])
    operations = markdown(FORWARD_HEAD, [_operations_row(one) for one in found["forward_operations"]])
    return "\n".join([lines, means, layers, operations, *excluded, f"- source: {times.source}"]) + "\n"


def _label_row(one: dict[str, Any]) -> list[str]:
    cells = [
        f"{1000 * seconds:.1f}" for both in zip(one["measured_s"], one["predicted_s"], strict=True) for seconds in both
    ]
    return [f"{one['card']} {one['training']}", *cells, *(_error(name, one[name]) for name in ERRORS)]


def _mean_row(card: str, one: dict[str, Any]) -> list[Any]:
    verdicts = [{True: "yes", False: "no"}[one["reached"][name]] if one["reached"] else "" for name in OURS]
    goal = f"{one['goal']:.1%}" if one["goal"] else ""
    return [card, one["labels"], *(f"{one[name]:.2%}" for name in (*ERRORS, "backward_error")), goal, *verdicts]


def _layer_row(one: dict[str, Any]) -> list[str]:
    cells = [cell for name in ("bias", "none") for cell in (f"{one[f'{name}_ms']:.3f}", percent(one[f"{name}_error"]))]
    return [f"{one['card']} {' x '.join(map(str, one['sizes']))}", f"{one['measured_ms']:.3f}", *cells]


def _operations_row(one: dict[str, Any]) -> list[str]:
    return [
        f"{one['card']} {one['training']}",
        *(f"{1000 * one[name]:.1f}" for name in ("measured_s", "operations_s", "rest_s")),
        f"{one['allocated_gib']:.1f}",
    ]


def _error(name: str, error: float) -> str:
    """Format an error; the source states those of its own estimator without their sign."""
    return f"{error:.1%}" if name == "neusight_error" else percent(error)


def main(arguments: Sequence[str]) -> None:
    """Record the operations if requested, then predict all labels and write the table."""
    times = published_times()
    if "--record" in arguments:
        record_all(times)
    found = summarize(times, compare_labels(times, read_operations()))
    write(FOLDER, "times", table(times, found), found)


if __name__ == "__main__":
    main(sys.argv[1:])
