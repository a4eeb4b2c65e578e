"""Compute the output layer and the cross entropy for one chunk of tokens at a time.

Logits, their 32-bit copy and their gradients exist for one chunk of tokens only. The backward pass computes the logits
of each chunk again. The computation for each token is unchanged. The losses, and the gradients of the output layer, are
summed over the tokens in another order. In 16 bits, these gradients are rounded after each chunk.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from lightning.fabric.plugins import Precision
from torch.nn.functional import cross_entropy, pad
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss

from experiments.errors import InputError
from experiments.training.transformers_compat import VERSION_5

CHUNK_TOKENS = 1024
"""Enough tokens for fast matrix products, and few enough that their logits for a vocabulary of 256,000 words take only
1 GiB in 32 bit."""
IGNORED_TARGET = -100


class ChunkedCrossEntropy:
    """The cross entropy of LitGPT's ``model``, computed from hidden states.

    The constructor makes the model's output layer return its input, the hidden states. precision: converts inputs and
    outputs of the output layer, as Fabric does for the model; None: nothing is converted, because Lightning's Trainer
    applies the precision to the whole training step.
    """

    def __init__(self, model: Any, precision: Precision | None = None) -> None:
        self._head, self._precision = model.lm_head.forward, precision or Precision()
        model.lm_head.forward = lambda hidden: hidden

    def __call__(self, hidden: torch.Tensor | list[torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of all targets but IGNORED_TARGET, as litgpt.utils.chunked_cross_entropy does.

        hidden: (batch, tokens, width), or a list of its parts along the tokens. targets: (batch, tokens), int64.
        """
        whole = torch.cat(hidden, dim=1) if isinstance(hidden, list) else hidden
        return _sum_losses(self._compute_logits, whole, targets) / _count_targets(targets).clamp(min=1)

    def _compute_logits(self, hidden: torch.Tensor) -> Any:
        with self._precision.forward_context():
            logits = self._head(self._precision.convert_input(hidden))
        return self._precision.convert_output(logits)


def chunk_causal_loss(model: PreTrainedModel) -> None:
    """Make a causal language model of transformers compute its loss in chunks.

    The field ``logits`` of the model's output then has the hidden states.

    Raises InputError if the model's loss is not transformers' loss of causal language models. The loss raises
    InputError if the model has changed the logits, for example limited them.
    """
    if not VERSION_5:
        raise InputError("chunked_loss: needs Transformers 5")
    head: Any = model.get_output_embeddings()
    models = [part for part in model.modules() if isinstance(part, PreTrainedModel) and head in part.modules()]
    if not (models and all(map(_has_causal_loss, models))):
        raise InputError(f"chunked_loss: not possible for {type(model).__name__}, which has a loss of its own")
    loss = _ChunkedCausalLoss(head, type(model).__name__)
    for one in models:
        one.loss_function = loss


class _ChunkedCausalLoss:
    """transformers' loss of causal language models, computed from hidden states.

    The constructor makes ``head`` return its input, the hidden states.
    """

    def __init__(self, head: Any, model_name: str) -> None:
        self._head, self._model_name = head.forward, model_name
        self._returned: tuple[torch.Tensor, int] | None = None
        head.forward = self._return_hidden

    def __call__(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        vocab_size: int,  # noqa: ARG002 - models pass it by name or by position
        num_items_in_batch: torch.Tensor | int | None = None,
        shift_labels: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """Return the sum of the losses divided by ``num_items_in_batch``, or by the number of targets.

        logits: hidden states (batch, tokens, width). labels: (batch, tokens), int64; each label is the target of the
        previous token. shift_labels: (batch, tokens), the target of each token; if given, they replace ``labels``.
        """
        self._require_unchanged(logits)
        targets = pad(labels, (0, 1), value=IGNORED_TARGET)[..., 1:] if shift_labels is None else shift_labels
        count = _count_targets(targets) if num_items_in_batch is None else num_items_in_batch
        return _sum_losses(lambda hidden: self._head(hidden).float(), logits, targets) / count

    def _return_hidden(self, hidden: torch.Tensor) -> torch.Tensor:
        self._returned = hidden, hidden._version
        return hidden

    def _require_unchanged(self, logits: torch.Tensor) -> None:
        returned, self._returned = self._returned, None
        if returned is None or not _is_unchanged_view(logits, *returned):
            raise InputError(
                f"chunked_loss: not possible for {self._model_name}, which changes the logits after its output layer"
            )


def _sum_losses(
    compute_logits: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Return the sum of the cross entropies of hidden states (..., width), with ``targets`` (...)."""

    def token_losses(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return cross_entropy(compute_logits(hidden), targets, ignore_index=IGNORED_TARGET, reduction="none")

    chunks = zip(hidden.flatten(0, -2).split(CHUNK_TOKENS), targets.flatten().split(CHUNK_TOKENS), strict=True)
    losses: list[torch.Tensor] = [checkpoint(token_losses, *chunk, use_reentrant=False) for chunk in chunks]
    return torch.cat(losses).sum()


def _count_targets(targets: torch.Tensor) -> torch.Tensor:
    return (targets != IGNORED_TARGET).sum()


def _has_causal_loss(model: PreTrainedModel) -> bool:
    uses_function = "loss_function" in inspect.unwrap(type(model).forward).__code__.co_names
    return uses_function and model.loss_function is ForCausalLMLoss


def _is_unchanged_view(tensor: torch.Tensor, other: torch.Tensor, version: int) -> bool:
    """Return whether ``tensor`` is a view of whole rows of ``other``, and ``other`` still has its old ``version``."""
    same_storage = tensor.untyped_storage()._cdata == other.untyped_storage()._cdata
    return same_storage and (tensor._version, tensor.shape[-1]) == (version, other.shape[-1])
