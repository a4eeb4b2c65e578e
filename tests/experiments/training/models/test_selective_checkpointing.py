"""Selective activation checkpointing: the same training, with fewer stored and fewer repeated results."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from experiments.suites.settings import Settings
from experiments.training.models.selective_checkpointing import build_contexts
from experiments.training.rank import run_rank
from tests.support.training.tiny_rows import LLAMA, OPT, spec


def flops(**options):
    """Return the floating-point operations of a forward and a backward pass through a block of four layers."""
    torch.manual_seed(0)
    block = nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in range(4)))
    with FlopCounterMode(display=False) as counter:
        checkpoint(block, torch.randn(8, 16, requires_grad=True), use_reentrant=False, **options).sum().backward()
    return counter.get_total_flops()


def test_every_second_matrix_product_is_recomputed():
    once = 2 * 8 * 16 * 16
    whole, selective = flops(), flops(context_fn=build_contexts)
    assert whole == (4 + 8 + 3) * once  # the last layer's result is not needed again
    assert selective == (4 + 8 + 1) * once


@pytest.mark.parametrize("row", [{"model": OPT}, {"engine": "hf_trainer", "model": OPT}], ids=str)
def test_a_row_has_the_same_losses_as_without_checkpointing(row, tmp_path):
    usual = run_rank(spec(**row), tmp_path)
    found = run_rank(spec(**row, activation_checkpointing="selective"), tmp_path)
    assert found.failure is None, found.failure
    assert found.losses == usual.losses


@pytest.mark.parametrize("changes", [{"engine": "litgpt", "model": LLAMA}, {"devices": 2, "strategy": "ddp"}], ids=str)
def test_rows_that_selective_checkpointing_does_not_support_are_rejected(changes):
    data = spec().settings.model_dump() | {"activation_checkpointing": "selective", "global_batch_size": None}
    with pytest.raises(ValueError, match="activation_checkpointing = selective: needs"):
        Settings.model_validate(data | changes)
