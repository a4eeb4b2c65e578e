"""Log work of the host that starts no operation.

This work is: the views that FSDP replaces, activation checkpointing, and the steps of transformers' Trainer.
"""

import functools
import json
from collections.abc import Callable
from typing import Any

from torch.utils import checkpoint

from experiments.prediction.phantom.library import Phantom
from experiments.prediction.times.operations import CHECKPOINT, MODULES, VIEWS

VIEW_METHODS = ("_use_unsharded_views", "_use_sharded_views", "_use_unsharded_grad_views", "_use_sharded_grad_views")
"""Methods with which FSDP (version 1) replaces the views of all parameters of a unit, or of their gradients: after a
gather, after it has freed the gathered parameters, and after the backward pass."""


def log_view_replacements_of_fsdp(phantom: Phantom) -> None:
    """Patch FSDP: each time it replaces the views of a unit's parameters, their number is logged."""
    from torch.distributed.fsdp._flat_param import FlatParamHandle

    for name in VIEW_METHODS:
        _log_before(
            phantom,
            FlatParamHandle,
            name,
            lambda handle, *_, **__: json.dumps([VIEWS, len(handle.flat_param._param_infos)]),
        )


def log_checkpoints(phantom: Phantom) -> None:
    """Patch PyTorch's activation checkpointing: each forward pass of a checkpointed function is logged."""
    _log_checkpoint(phantom, checkpoint, "_checkpoint_without_reentrant_generator")
    _log_checkpoint(phantom, checkpoint.CheckpointFunction, "forward")


def log_checkpoints_of_deepspeed(phantom: Phantom) -> None:
    """Patch DeepSpeed's own activation checkpointing, which is adapted from PyTorch's (DeepSpeed, checkpointing.py).

    Each forward pass of a checkpointed function is logged. Its time is assumed to be that of PyTorch's.
    """
    from deepspeed.runtime.activation_checkpointing import checkpointing

    _log_checkpoint(phantom, checkpointing, "non_reentrant_checkpoint")
    _log_checkpoint(phantom, checkpointing.CheckpointFunction, "forward")


def _log_checkpoint(phantom: Phantom, owner: Any, name: str) -> None:
    _log_before(phantom, owner, name, lambda *_, **__: json.dumps([CHECKPOINT]))


def log_steps_of_trainer(phantom: Phantom) -> None:
    """Patch transformers' Trainer: each micro-step logs the number of the model's modules.

    In each micro-step, the Trainer goes through all modules to set the training mode, and to count the parameters for
    its floating-point operations; in each step, also to delete the gradients (transformers/trainer.py). The number is
    logged in the forward pass: earlier operations would count to the previous step. If a subclass has a loss of its
    own, which does not call that of the Trainer, the number is logged after the backward pass.
    """
    from transformers import trainer

    is_logged = False

    def modules_of_step(_: Any, model: Any, *__: Any, **___: Any) -> str:
        nonlocal is_logged
        is_logged = True
        return json.dumps([MODULES, sum(1 for _ in model.modules())])

    step = _without_log(trainer.Trainer.training_step)

    @functools.wraps(step)
    def training_step(self: Any, model: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal is_logged
        is_logged = False
        loss = step(self, model, *arguments, **options)
        if not is_logged:
            phantom.log_operation(modules_of_step(self, model))
        return loss

    _log_before(phantom, trainer.Trainer, "compute_loss", modules_of_step)
    _replace(trainer.Trainer, "training_step", step, training_step)


def _log_before(phantom: Phantom, owner: Any, name: str, key: Callable[..., str]) -> None:
    """Patch a function of ``owner``: before each call, it logs the key that ``key`` returns for the arguments."""
    function = _without_log(getattr(owner, name))

    @functools.wraps(function)
    def logged(*arguments: Any, **options: Any) -> Any:
        phantom.log_operation(key(*arguments, **options))
        return function(*arguments, **options)

    _replace(owner, name, function, logged)


def _without_log(function: Any) -> Any:
    """Return the function without its patch, if it has one: so each call is logged once. Its decorators stay."""
    return getattr(function, "logged_function", function)


def _replace(owner: Any, name: str, function: Any, logged: Any) -> None:
    """Patch a function of ``owner``, which may be static. function: without the patch. logged: with the patch."""
    setattr(logged, "logged_function", function)  # noqa: B010 - not an attribute of functions
    is_static = isinstance(vars(owner)[name], staticmethod)
    setattr(owner, name, staticmethod(logged) if is_static else logged)
