"""Shard a model over the ranks with FSDP, as a plain PyTorch loop does, and clip the gradients of such a model."""

from typing import Any

import torch
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from experiments.prediction.loops.build import AUTOCAST
from experiments.prediction.loops.job import LoopJob
from experiments.training.transformers_compat import checkpointed_layers


def shard(model: torch.nn.Module, job: LoopJob) -> torch.nn.Module:
    """Return the model in shards on the GPUs. FSDP's units are the transformer blocks, and the rest of the model.

    With a mixed precision, FSDP casts the gathered parameters to 16 bit, and reduces the gradients in 16 bit.
    """
    blocks, dtype = checkpointed_layers(), AUTOCAST.get(job.precision)
    if job.fsdp == 1:
        return FullyShardedDataParallel(
            model,
            auto_wrap_policy=ModuleWrapPolicy(blocks),
            mixed_precision=MixedPrecision(param_dtype=dtype, reduce_dtype=dtype) if dtype else None,
            device_id=torch.cuda.current_device(),
            use_orig_params=True,
        )
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=dtype)
    for block in [part for part in model.modules() if isinstance(part, tuple(blocks))]:
        fully_shard(block, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    return model


def clip_gradients(model: Any, norm: float) -> None:
    """Scale the gradients so that their norm over all shards is at most ``norm``."""
    if isinstance(model, FullyShardedDataParallel):
        model.clip_grad_norm_(norm)
    else:
        torch.nn.utils.clip_grad_norm_(model.parameters(), norm)
