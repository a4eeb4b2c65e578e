"""Predict the memory of FSDP with batch size 8 after a forward pass, with and without gradient accumulation.

    python -m tests.benchmarks.prediction.fsdp_accumulation [FOLDER]

Writes accumulated.md and accumulated.json into the folder (default: experiments/evidence/prediction_h200). While a
training accumulates gradients, Lightning disables the exchange of gradients between the GPUs, so that each GPU has the
gradients of the whole model.
"""

from experiments.prediction.predict import peak_spec, predict
from experiments.suites.suite import suite_named
from experiments.system.files import cache_folder
from tests.benchmarks.prediction.tables import folder_of, markdown, write

SUITE, ROW, CARD = "multi_gpu_litgpt", "7b-4gpu-fsdp-b8", "a100_80gb"
POINT = "after forward"


def main() -> None:
    folder = folder_of(__doc__)
    suite = suite_named(SUITE)
    taught = suite.settings(suite.row(ROW), CARD)
    batch = taught.batch_size * taught.world_size
    counts = ({"accumulate": count, "global_batch_size": count * batch} for count in (1, 4))
    specs = [peak_spec(SUITE, ROW, CARD, taught.model_copy(update=count), suite.version) for count in counts]
    found = [
        {
            "accumulate": prediction.spec.settings.accumulate,
            "step": shot.step,
            "micro_step": shot.micro_step,
            "grads_gib": shot.grads_gib,
            "allocated_after_forward_gib": shot.allocated_gib,
            "reserved_gib": prediction.reserved_gib,
            "usable_gib": prediction.usable_gib,
        }
        for prediction in predict(specs, cache_folder())
        for shot in prediction.memory.snapshots
        if shot.point == POINT
    ]
    rows = [[f"{value:.2f}" if isinstance(value, float) else str(value) for value in one.values()] for one in found]
    write(folder, "accumulated", markdown(list(found[0]), rows), {"cells": found})


if __name__ == "__main__":
    main()
