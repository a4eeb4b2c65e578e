"""The output layer and the cross entropy of a part of the tokens at a time, computed again in the backward pass.

Logits, their 32-bit copy and their gradients exist for one chunk of tokens only. The arithmetic of a token is unchanged;
sums over tokens are taken in another order.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from lightning.fabric.plugins import Precision
from torch import nn
from torch.nn.functional import cross_entropy, pad
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss

from experiments.errors import InputError

CHUNK_TOKENS = 1024
"""Enough tokens for fast matrix products, and few enough that the logits of 256,000 words take only 1 GiB in 32 bit."""
IGNORED_TARGET = -100
LOSS_FUNCTION = "loss_function"
"""Attribute of transformers' models with the function of logits and targets that computes the loss."""

Losses = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Compute losses from hidden states (tokens, width) and target tokens (tokens)."""


class ChunkedCrossEntropy:
    """The cross entropy of LitGPT's ``model``, whose output layer now returns its input, the hidden states.

    precision: converts inputs and outputs of the output layer, as Fabric does for the model. Lightning's Trainer applies
    the precision to the whole training step, so that nothing is converted here.
    """

    def __init__(self, model: Any, precision: Precision | None = None) -> None:
        self._compute_logits, self._precision = model.lm_head.forward, precision or Precision()
        model.lm_head.forward = lambda hidden: hidden

    def __call__(self, hidden: torch.Tensor | list[torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of all targets but IGNORED_TARGET, as litgpt.utils.chunked_cross_entropy does.

        hidden: (batch, tokens, width), or a list of its parts along the tokens. targets: (batch, tokens), int64.
        """
        whole = torch.cat(hidden, dim=1) if isinstance(hidden, list) else hidden
        losses = torch.cat(_chunk_losses(self._token_losses, whole, targets))
        return losses.sum() / (targets != IGNORED_TARGET).sum().clamp(min=1)

    def _token_losses(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with self._precision.forward_context():
            logits = self._compute_logits(self._precision.convert_input(hidden))
        logits = self._precision.convert_output(logits)
        return cross_entropy(logits, targets, ignore_index=IGNORED_TARGET, reduction="none")


def chunk_causal_loss(model: PreTrainedModel) -> None:
    """Make a causal language model of transformers compute its loss in chunks. Its output then has no logits.

    Raises InputError if the model's loss is not transformers' loss of causal language models. The loss raises
    InputError if the model has changed the logits, for example limited them.
    """
    head: Any = model.get_output_embeddings()
    models = [part for part in model.modules() if isinstance(part, PreTrainedModel) and head in part.modules()]
    if head is None or not all(map(_has_causal_loss, models)):
        raise InputError(
            f"chunked_loss = True: not possible for {type(model).__name__}, which computes its loss in its own way;"
            " allowed: False"
        )
    loss = _ChunkedCausalLoss(head, type(model).__name__)
    for one in models:
        setattr(one, LOSS_FUNCTION, loss)


class _ChunkedCausalLoss:
    """transformers' loss of causal language models, with the hidden states that ``head`` returned for logits."""

    def __init__(self, head: Any, model_name: str) -> None:
        self._compute_logits, self._model_name = head.forward, model_name
        self._returned: tuple[torch.Tensor, int] | None = None
        head.forward = self._return_hidden

    def __call__(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        *,
        num_items_in_batch: torch.Tensor | int | None = None,
        shift_labels: torch.Tensor | None = None,
        **options: Any,
    ) -> torch.Tensor:
        self._require_unchanged(logits)
        targets = pad(labels, (0, 1), value=IGNORED_TARGET)[..., 1:] if shift_labels is None else shift_labels
        count = (targets != IGNORED_TARGET).sum() if num_items_in_batch is None else num_items_in_batch

        def share_of_loss(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            logits = self._compute_logits(hidden)
            return ForCausalLMLoss(logits, None, num_items_in_batch=count, shift_labels=targets, **options)

        return torch.stack(_chunk_losses(share_of_loss, logits, targets)).sum()

    def _return_hidden(self, hidden: torch.Tensor) -> torch.Tensor:
        self._returned = hidden, hidden._version
        return hidden

    def _require_unchanged(self, logits: torch.Tensor) -> None:
        returned, self._returned = self._returned, None
        if returned is None or not _is_view(logits, *returned):
            raise InputError(
                f"chunked_loss = True: not possible for {self._model_name}, which changes the logits after its output"
                " layer; allowed: False"
            )


def _chunk_losses(losses: Losses, hidden: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
    """Return the ``losses`` of each CHUNK_TOKENS tokens of hidden states (..., width) with targets (...)."""
    chunks = zip(hidden.flatten(0, -2).split(CHUNK_TOKENS), targets.flatten().split(CHUNK_TOKENS), strict=True)
    return [checkpoint(losses, *chunk, use_reentrant=False) for chunk in chunks]


def _has_causal_loss(model: PreTrainedModel) -> bool:
    uses_it = LOSS_FUNCTION in inspect.unwrap(type(model).forward).__code__.co_names
    return uses_it and getattr(model, LOSS_FUNCTION) is ForCausalLMLoss


def _is_view(tensor: torch.Tensor, other: torch.Tensor, version: int) -> bool:
    """Return whether ``tensor`` has whole rows of ``other``, to which nothing was written since it had ``version``."""
    same_storage = tensor.untyped_storage()._cdata == other.untyped_storage()._cdata
    return same_storage and (tensor._version, tensor.shape[-1]) == (version, other.shape[-1])
