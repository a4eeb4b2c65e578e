"""Log how many views of parameters FSDP replaces: the host needs time for them, but starts no operation."""

import functools
import json
from typing import Any

from torch.distributed.fsdp._flat_param import FlatParamHandle

from experiments.prediction.phantom.library import Phantom
from experiments.prediction.times.operations import VIEWS

VIEW_METHODS = ("_use_unsharded_views", "_use_sharded_views", "_use_unsharded_grad_views", "_use_sharded_grad_views")
"""Methods with which FSDP (version 1) replaces the views of all parameters of a unit, or of their gradients: after a
gather, after it has freed the gathered parameters, and after the backward pass."""


def log_view_replacements_of_fsdp(phantom: Phantom) -> None:
    """Patch FSDP: each time it replaces the views of a unit's parameters, their number is logged."""
    for name in VIEW_METHODS:
        _log_before(phantom, name, getattr(FlatParamHandle, name))


def _log_before(phantom: Phantom, name: str, replace: Any) -> None:
    @functools.wraps(replace)
    def logged(handle: Any, *arguments: Any, **options: Any) -> Any:
        phantom.log_operation(json.dumps([VIEWS, len(handle.flat_param._param_infos)]))
        return replace(handle, *arguments, **options)

    setattr(FlatParamHandle, name, logged)
