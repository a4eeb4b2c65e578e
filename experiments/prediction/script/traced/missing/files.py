"""If a file with weights is missing on this computer, go on as if it had the values that the model was built with."""

import os
from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any, NoReturn

import torch
from torch.nn.modules.module import _IncompatibleKeys
from torch.optim import lr_scheduler

from experiments.prediction.script.traced.missing import substitutes

READING_METHODS = (
    *("__iter__", "__len__", "__bool__", "__contains__", "__int__", "__index__", "__float__"),
    *("__add__", "__radd__", "__sub__", "__mul__", "__lt__", "__gt__", "__le__", "__ge__"),
)
"""Methods that Python calls to read the value or the items of an object."""


class UnknownContents:
    """The contents of a missing file, or the value of a key in it.

    ``load_state_dict`` of modules, optimizers, schedules and gradient scalers accepts it and changes nothing. Every
    other use raises RuntimeError, because the contents are unknown.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getitem__(self, key: Any) -> "UnknownContents":
        return UnknownContents(f"{self._name}[{key!r}]")

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        self._raise_unknown()

    def _raise_unknown(self, *_: Any) -> NoReturn:
        error = RuntimeError(f"the contents of {self._name} are unknown")
        substitutes.explain(
            error,
            f"the contents of {self._name}, which the script reads; {substitutes.FLAG} only replaces contents that "
            "load_state_dict loads",
        )
        raise error


for _name in READING_METHODS:
    setattr(UnknownContents, _name, UnknownContents._raise_unknown)


def replace_missing_files() -> None:
    """Replace torch.load and load_state_dict, so that the contents of a missing file can be unknown."""
    torch.load = _replace_loading(torch.load)
    torch.hub.load_state_dict_from_url = _replace_loading(torch.hub.load_state_dict_from_url)
    schedules = [one for one in vars(lr_scheduler).values() if isinstance(one, type)]
    for owner in {torch.nn.Module, torch.optim.Optimizer, torch.amp.GradScaler, *schedules}:
        if "load_state_dict" in vars(owner):
            setattr(owner, "load_state_dict", _accept_unknown_contents(vars(owner)["load_state_dict"]))  # noqa: B010


def replace_missing_safetensors() -> None:
    """Replace safetensors' functions that load a file of weights, as ``replace_missing_files`` replaces torch.load."""
    import safetensors.torch as library

    load_model = library.load_model

    @wraps(load_model)
    def load_model_or_skip(model: Any, filename: Any, *arguments: Any, **options: Any) -> Any:
        if substitutes.allowed() and not os.path.exists(filename):
            model.load_state_dict(library.load_file(filename))
            return set(), set()
        return load_model(model, filename, *arguments, **options)

    library.load_file = _replace_loading(library.load_file)
    library.load_model = load_model_or_skip


def _replace_loading(load: Callable[..., Any]) -> Any:
    """Return a function that loads a file or URL with ``load``. If the file is missing, it returns UnknownContents.

    It raises the error of ``load`` instead if nothing may be made up.
    """
    file_argument = next(iter(signature(load).parameters))

    @wraps(load)
    def load_or_replace(*arguments: Any, **options: Any) -> Any:
        try:
            return load(*arguments, **options)
        except OSError as error:
            file = arguments[0] if arguments else options[file_argument]
            if not isinstance(file, str | os.PathLike) or os.path.exists(file):
                raise
            if not substitutes.allowed():
                substitutes.explain(
                    error, f"the file {file}; {substitutes.FLAG} goes on with the values that the model was built with"
                )
                raise
            substitutes.add_note(
                f"the file {file} is missing: load_state_dict changed nothing, and the memory of its tensors is not "
                "counted"
            )
            return UnknownContents(str(file))

    return load_or_replace


def _accept_unknown_contents(load_state_dict: Callable[..., Any]) -> Any:
    @wraps(load_state_dict)
    def load_or_skip(owner: Any, state_dict: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(state_dict, UnknownContents):
            return _IncompatibleKeys([], []) if isinstance(owner, torch.nn.Module) else None
        return load_state_dict(owner, state_dict, *arguments, **options)

    return load_or_skip
