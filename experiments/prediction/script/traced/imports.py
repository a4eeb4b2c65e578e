"""Libraries that reach for CUDA when they are imported: prepared for the phantom device at their first import."""

import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

NOT_MODELED = {
    "flash_attn": "its attention kernels",
    "xformers": "its attention kernels",
    "apex": "its fused kernels",
    "transformer_engine": "its fused kernels",
    "liger_kernel": "its fused kernels",
    "triton": "its kernels",
}
"""Libraries with kernels of their own, whose scratch memory is unknown."""
_compiled: list[bool] = []


class Prepared(Loader):
    """Loads a library by a function that imports it; importing it once more would leave its modules apart."""

    def __init__(self, prepare: Callable[[], None]) -> None:
        self._prepare = prepare

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Import the library; return it."""
        self._prepare()
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: the library has run."""


class AtImport(MetaPathFinder):
    """A finder for one library, which a function imports at its first import."""

    def __init__(self, library: str, prepare: Callable[[], None]) -> None:
        self._library, self._prepare = library, prepare

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        """Return how the library is loaded; None for other libraries, and while the function imports it."""
        if name != self._library or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        found = importlib.util.find_spec(name)
        sys.meta_path.insert(0, self)
        if found is None:
            return None
        spec = ModuleSpec(name, Prepared(self._import), origin=found.origin, is_package=True)
        spec.submodule_search_locations = found.submodule_search_locations
        return spec

    def _import(self) -> None:
        sys.meta_path.remove(self)
        self._prepare()


def prepare_imports() -> None:
    """Prepare bitsandbytes and DeepSpeed for the phantom device when, and if, the script imports them."""
    sys.meta_path.insert(0, AtImport("bitsandbytes", _bitsandbytes))
    sys.meta_path.insert(0, AtImport("deepspeed", _deepspeed))


def notes() -> list[str]:
    """Return what was imported and is not modeled, with what that means for the prediction."""
    found = {name: what for name, what in NOT_MODELED.items() if name in sys.modules}
    lines = [f"{name} was imported: memory inside {what} is not modeled" for name, what in found.items()]
    if any(_compiled):
        lines.append("torch.compile was called: memory is that of the uncompiled model")
    return lines


def note_compile() -> None:
    """Note calls of torch.compile, which compiles nothing here."""
    import torch

    compile = torch.compile

    def noted(*arguments: Any, **named: Any) -> Any:
        _compiled.extend(isinstance(one, torch.nn.Module) for one in arguments[:1])
        return compile(*arguments, **named)

    torch.compile = noted


def _bitsandbytes() -> None:
    from experiments.prediction.phantom.bits import import_bitsandbytes

    import_bitsandbytes()


def _deepspeed() -> None:
    from experiments.prediction.phantom.cpu_adam import skip_cpu_adam

    skip_cpu_adam()
