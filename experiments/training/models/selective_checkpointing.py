"""Checkpoint activations selectively: store the results of attention and of every second matrix product."""

from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, SelectiveCheckpointContext, create_selective_checkpoint_contexts

_aten = torch.ops.aten
ATTENTION = (
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
)
MATRIX_PRODUCTS = (_aten.mm.default, _aten.addmm.default)


def build_contexts() -> tuple[Any, Any]:
    """Return the contexts of a block's forward pass and of its recomputation, for torch.utils.checkpoint.

    The operations whose results are stored are the same as in torchtitan's selective checkpointing by operation
    (distributed/activation_checkpoint.py).
    """
    product_counts = {False: 0, True: 0}

    def policy(context: SelectiveCheckpointContext, operation: Any, *_: Any, **__: Any) -> CheckpointPolicy:
        if operation in MATRIX_PRODUCTS:
            product_counts[context.is_recompute] += 1
        stores = operation in ATTENTION or (operation in MATRIX_PRODUCTS and product_counts[context.is_recompute] % 2)
        return CheckpointPolicy.MUST_SAVE if stores else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)
