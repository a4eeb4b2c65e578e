"""Batches of a training program: one text in each row, or several packed texts, which do not attend to each other."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DataCollatorWithFlattening

from experiments.errors import InputError
from experiments.prediction.loops.job import LoopJob

IGNORED_LABEL = -100
"""Label of the first token of a text, which no token of the same text predicts."""
CAUSAL_CLASSES = ("ForCausalLM", "LMHeadModel")
Sample = dict[str, torch.Tensor]


def make_batch(samples: Sequence[Sample], job: LoopJob) -> dict[str, Any]:
    """Return the samples as one batch.

    Without packing, the tensors of the samples are stacked. With packing, each sample (tokens,) becomes a row of
    ``job.packing`` texts without padding, and the positions of each text begin at 0. With packing and flash attention,
    all texts of the batch form one row (1, batch * tokens), as with transformers' DataCollatorWithFlattening and TRL.
    """
    if job.packing is None:
        return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    rows = [sample["input_ids"].tensor_split(job.packing) for sample in samples]
    if job.attention == "flash_attention_2":
        texts = [{"input_ids": text.tolist()} for row in rows for text in row]
        batch: dict[str, Any] = DataCollatorWithFlattening(return_flash_attn_kwargs=True)(texts)
        return batch
    positions = torch.stack([torch.cat([torch.arange(len(text)) for text in row]) for row in rows])
    tokens = torch.stack([torch.cat(row) for row in rows])
    labels = tokens.masked_fill(positions == 0, IGNORED_LABEL)
    return {"input_ids": tokens, "labels": labels, "position_ids": positions}


def reject_unpackable(sample: Sample, class_name: str, input_names: Sequence[str], job: LoopJob) -> None:
    """Raise InputError if the job packs texts and the model cannot separate them, or needs other inputs than texts."""
    only_texts = sample.keys() == {"input_ids", "labels"} and class_name.endswith(CAUSAL_CLASSES)
    if job.packing and not (only_texts and "position_ids" in input_names):
        raise InputError(
            f"--packing {job.packing}: {class_name} cannot tell packed texts apart; allowed: causal language models"
            " with position_ids, such as LlamaForCausalLM"
        )
