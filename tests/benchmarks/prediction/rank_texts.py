"""Compare the predicted memory of each rank, with its own texts, with the measured memory.

    python -m tests.benchmarks.prediction.rank_texts [FOLDER]

Writes rank_texts.md and rank_texts.json into the folder (default: experiments/evidence/prediction_h200), for rows that
were measured on four GPUs. `testbed predict` traces only the first rank; this program traces the texts of each rank.
The tables have, in GiB: the reserved memory after the backward pass and after the optimizer of the second step, as
predicted without a memory limit and as measured; and the needed memory.
"""

from types import SimpleNamespace
from typing import Any
from unittest import mock

from experiments.prediction import tracer
from experiments.prediction.phantom.library import Phantom, load
from experiments.results.memory_parts import StepPoint
from experiments.results.predictions import Prediction
from experiments.results.run_folder import RunFolder
from experiments.results.schema import Memory
from experiments.suites.row_spec import RowSpec
from experiments.system.files import cache_folder
from tests.benchmarks.forks import run_in_fork
from tests.benchmarks.prediction.tables import EVIDENCE, folder_of, markdown, write

ROWS = {
    "multi_gpu_litgpt-a100_80gb-full-verdict": ("7b-4gpu-ddp", "7b-4gpu-fsdp", "7b-4gpu-fsdp-b8"),
    "multi_gpu_litgpt-v100_32gb-full-verdict": ("1b-4gpu-ddp", "1b-4gpu-fsdp", "3b-4gpu-fsdp"),
}
POINTS: tuple[StepPoint, ...] = ("after backward", "after optimizer step")


def predict_with_texts_of(rank: int, spec: RowSpec, phantom: Phantom) -> Prediction:
    """Return the prediction of the first rank with the texts of ``rank``, traced in a separate process."""
    return run_in_fork(_trace, rank, spec, phantom)


def use_texts_of(rank: int) -> None:
    """Make this process train on the texts of ``rank``."""
    from experiments.training.data import sampler

    mock.patch.object(
        sampler, "distributed", SimpleNamespace(is_initialized=lambda: True, get_rank=lambda: rank)
    ).start()


def _trace(rank: int, spec: RowSpec, phantom: Phantom) -> Prediction:
    use_texts_of(rank)
    return tracer.trace(spec, [spec.card], phantom)[0]


def second_step(memory: Memory) -> list[float | None]:
    """Return the reserved GiB at POINTS of the last micro-step of the second step."""
    reserved = {shot.point: shot.reserved_gib for shot in memory.snapshots if shot.step == 1}
    return [reserved.get(point) for point in POINTS]


def main() -> None:
    folder = folder_of(__doc__)
    phantom = load(cache_folder())
    tracer.import_libraries(phantom)
    found: list[dict[str, Any]] = []
    for run, rows in ROWS.items():
        results = RunFolder(EVIDENCE.parent / run).results()
        for row in rows:
            for one in results[row].ranks:
                predicted = predict_with_texts_of(one.rank, results[row].spec, phantom)
                found.append(
                    {
                        "row": row,
                        "rank": one.rank,
                        "outcome": results[row].outcome,
                        "predicted_reserved_gib": second_step(predicted.memory),
                        "measured_reserved_gib": second_step(one.memory),
                        "needed_gib": predicted.needed_gib,
                        "usable_gib": predicted.usable_gib,
                    }
                )
                print(found[-1], flush=True)
    head = ["row", "rank", "after backward", "measured", "after optimizer", "measured", "needed", "usable"]
    cells = [
        [
            one["row"],
            one["rank"],
            *map(_gib, _gib_by_point(one)),
            _gib(one["needed_gib"]),
            _gib(one["usable_gib"]),
        ]
        for one in found
    ]
    write(folder, "rank_texts", markdown(head, cells), found)


def _gib_by_point(one: dict[str, Any]) -> list[float | None]:
    return [
        gib for both in zip(one["predicted_reserved_gib"], one["measured_reserved_gib"], strict=True) for gib in both
    ]


def _gib(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main()
