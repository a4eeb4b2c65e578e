"""Compare the predicted memory of each rank, with its own texts, with the measured memory.

    python -m tests.benchmarks.prediction.rank_texts [FOLDER]

Writes rank_texts.md and rank_texts.json into the folder (default: experiments/evidence/prediction_h200), for rows that
were measured on four GPUs. This program traces the first rank with the texts of each rank.
The tables have, in GiB: the reserved memory after the second step, as predicted without a memory limit, for a card that
is as fast as the one on which it was measured, and as measured; and the memory that the whole run needs.
"""

from types import SimpleNamespace
from typing import Any
from unittest import mock

from experiments.prediction import tracer
from experiments.prediction.phantom.library import Phantom, load
from experiments.prediction.times.lag import set_clocks_of
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
MEASURED_ON = "h200_141gb"


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
    with mock.patch.object(tracer, "set_clocks_of", lambda _, *rest: set_clocks_of(MEASURED_ON, *rest)):
        return tracer.trace(spec, [spec.card], phantom)[0]


def reserved_after_second_step(memory: Memory) -> float | None:
    """Return the reserved GiB after the second optimizer step; None if the rank did not reach its end."""
    points = {(shot.step, shot.point): shot.reserved_gib for shot in memory.snapshots}
    return points.get((1, "after optimizer step"))


def main() -> None:
    folder = folder_of(__doc__)
    phantom = load(cache_folder())
    tracer.import_libraries(phantom)
    found: list[dict[str, Any]] = []
    for run, rows in ROWS.items():
        results = RunFolder(EVIDENCE.parent / run).results()
        for row in rows:
            for one in results[row].ranks:
                spec = results[row].spec
                two_steps = spec.model_copy(update={"length": "peak", "steady_s": 0.0})
                whole, predicted = (predict_with_texts_of(one.rank, each, phantom) for each in (spec, two_steps))
                found.append(
                    {
                        "row": row,
                        "rank": one.rank,
                        "outcome": results[row].outcome,
                        "predicted_reserved_gib": predicted.reserved_gib,
                        "measured_reserved_gib": reserved_after_second_step(one.memory),
                        "needed_gib": whole.needed_gib,
                        "usable_gib": whole.usable_gib,
                    }
                )
                print(found[-1], flush=True)
    head = ["row", "rank", "reserved predicted", "measured", "needed", "usable"]
    quantities = ("predicted_reserved_gib", "measured_reserved_gib", "needed_gib", "usable_gib")
    cells = [[one["row"], one["rank"], *(_gib(one[name]) for name in quantities)] for one in found]
    write(folder, "rank_texts", markdown(head, cells), found)


def _gib(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main()
