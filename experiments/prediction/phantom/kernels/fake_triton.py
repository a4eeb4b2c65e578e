"""Stand-in for Triton where it is not installed: scripts can define kernels; the bodies of kernels never run."""

import functools
import importlib
import inspect
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

VERSION = "3.6.0"
SUBMODULES = ("backends", "compiler", "language", "runtime", "testing", "tools")
"""Modules that ``import triton`` also imports."""
ERROR_SUFFIXES = ("Error", "Exception", "OutOfResources")
"""Endings of the names of exceptions."""


class Placeholder:
    """Value of any name of Triton that only the bodies of kernels use, or that describes a kernel.

    A placeholder can be called like a function of Triton, or used as a decorator that changes nothing.
    """

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Return the only argument if it is a function, else a placeholder."""
        return arguments[0] if len(arguments) == 1 and not options and callable(arguments[0]) else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __getitem__(self, _: Any) -> Any:
        return self


class KernelInterface:
    """A kernel with a grid in brackets, as in ``kernel[grid](arguments)``. The tracer replaces ``run``."""

    def __init__(self, fn: Callable[..., Any], *_: Any, **__: Any) -> None:
        self.fn = fn
        self.arg_names = getattr(fn, "arg_names", None) or [*inspect.signature(fn).parameters]
        self.__name__ = getattr(fn, "__name__", "kernel")
        self.__doc__ = fn.__doc__

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        return functools.partial(self.run, grid=grid, warmup=False)

    def run(self, *arguments: Any, **options: Any) -> Any:
        """Launch the kernel."""
        raise NotImplementedError


class JITFunction(KernelInterface):
    """A kernel that triton.jit made."""


class Autotuner(KernelInterface):
    """A kernel that triton.autotune made."""


class Heuristics(KernelInterface):
    """A kernel that triton.heuristics made."""


class Config(Placeholder):
    """A configuration of a kernel."""

    def __init__(self, kwargs: dict[str, Any], num_warps: int = 4, num_stages: int = 3, **_: Any) -> None:
        self.kwargs, self.num_warps, self.num_stages = kwargs, num_warps, num_stages


def jit(fn: Callable[..., Any] | None = None, **_: Any) -> Any:
    """Return the kernel of a function. Without a function, return a decorator that makes kernels."""
    return JITFunction(fn) if fn else JITFunction


def cdiv(x: int, y: int) -> int:
    """Return ``x`` / ``y``, rounded up."""
    return -(-x // y)


def next_power_of_2(n: int) -> int:
    """Return the smallest power of two that is not smaller than ``n``."""
    return 1 << max(n - 1, 0).bit_length()


NAMES: dict[str, dict[str, Any]] = {
    "triton": {
        "__version__": VERSION,
        "Config": Config,
        "JITFunction": JITFunction,
        "KernelInterface": KernelInterface,
        "autotune": lambda *_, **__: Autotuner,
        "cdiv": cdiv,
        "heuristics": lambda *_, **__: Heuristics,
        "jit": jit,
        "next_power_of_2": next_power_of_2,
    },
    "triton.runtime": {"Autotuner": Autotuner, "Heuristics": Heuristics, "JITFunction": JITFunction},
    "triton.runtime.autotuner": {"Autotuner": Autotuner, "Config": Config, "Heuristics": Heuristics},
    "triton.runtime.jit": {"JITFunction": JITFunction, "KernelInterface": KernelInterface, "jit": jit},
}
"""By module: the names whose values are not placeholders."""


class FakeModule(ModuleType):
    """A module of the stand-in. It has every name: classes for capitalized names, else placeholders."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in SUBMODULES and self.__name__ == "triton":
            return importlib.import_module(f"triton.{name}")
        is_error = name.endswith(ERROR_SUFFIXES)
        value: Any = type(name, (Exception if is_error else Placeholder,), {}) if name[0].isupper() else Placeholder()
        setattr(self, name, value)
        return value


class TritonFinder(Loader, MetaPathFinder):
    """Finder and loader of all modules of the stand-in. Python asks it last, so an installed Triton is found first."""

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        """Return the spec of a module of Triton; None for other modules."""
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] == "triton" else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return a new module."""
        module = FakeModule(spec.name)
        vars(module).update(NAMES.get(spec.name, {}))
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing, because the module is complete."""
