"""Record the operations of the trainings whose times were published, on the phantom device."""

import gc
from typing import Any

from experiments.prediction.phantom.library import Phantom
from experiments.prediction.times.record import PhaseRecorder
from experiments.suites.attention_kernels import kernel_properties
from experiments.suites.cards import REFERENCE_CARD, card_named
from experiments.system.files import GIB
from tests.benchmarks.prediction.published import FOLDER
from tests.benchmarks.prediction.published_times import attention
from tests.benchmarks.prediction.published_times.labels import Label, Model, TrainingOperations

ITERATIONS = 2
"""The first iteration creates the gradients, the second adds to them like every further one."""


def record_training(label: Label, model: Model, phantom: Phantom) -> TrainingOperations:
    """Run two iterations in this process, and return the operations of the second.

    The card does not matter: eager attention consists of the same operations on every card.
    """
    import torch

    from experiments.prediction.phantom.cuda import replace_cuda

    card = card_named(REFERENCE_CARD)
    torch.set_num_threads(1)
    replace_cuda(phantom, card)
    phantom.install(kernel_properties(card))
    network = _build(model)
    ids = torch.ones(label.batch, label.seq, dtype=torch.int64, device="cuda")
    recorder, allocated = PhaseRecorder(phantom), {}
    for _ in range(ITERATIONS):
        gc.collect()
        phantom.empty_cache()
        phantom.reset_peaks()
        reserved = [phantom.stats()[1]]
        recorder.begin_phase("forward")
        logits = _logits(network(ids))
        reserved.append(phantom.stats()[3])
        recorder.begin_phase("optimizer step")  # the loss is not timed
        loss = torch.nn.functional.cross_entropy(logits.view(-1, logits.size(-1)), ids.view(-1))
        del logits
        reserved.append(phantom.stats()[3])
        recorder.begin_phase("backward")
        loss.backward()
        del loss
        reserved.append(phantom.stats()[3])
        allocated = {"forward": (reserved[1] - reserved[0]) / GIB, "backward": (reserved[3] - reserved[2]) / GIB}
    forward, _, backward = recorder.recorded_phases(3 * (ITERATIONS - 1))
    return TrainingOperations(
        training=label.training,
        model=type(network).__name__,
        phases={"forward": dict(forward.operations), "backward": dict(backward.operations)},
        allocated_gib=allocated,
        reserved_gib=reserved[3] / GIB,
    )


def _build(model: Model) -> Any:
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(FOLDER / "configs" / model.config)
    config.use_cache = False  # the timed version kept keys and values without copying them
    kind = getattr(transformers, model.model_class)
    with torch.device("cuda"):
        return kind._from_config(config, attn_implementation=attention.register(), dtype=torch.float32).train()


def _logits(result: Any) -> Any:
    return result["prediction_logits"] if "prediction_logits" in result else result["logits"]
