"""Prepare some libraries for the phantom device when a script first imports them."""

import importlib.util
import json
import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from experiments.prediction.phantom.library import Phantom

if TYPE_CHECKING:
    import torch

NOT_MODELED = {
    "flash_attn": "its attention kernels",
    "xformers": "its attention kernels",
    "apex": "its fused kernels",
    "transformer_engine": "its fused kernels",
}
"""Libraries with their own kernels, whose scratch memory is unknown."""
TRITON_USERS = ("trl", "liger_kernel")
"""Libraries that run other code if Triton is missing."""
_compile_calls: list[bool] = []


class PreparedLoader(Loader):
    """Loader for a library that the function ``prepare`` imports. Python then does not execute the library again."""

    def __init__(self, prepare: Callable[[], None]) -> None:
        self._prepare = prepare

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Import the library and return its module."""
        self._prepare()
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing, because the library has already been executed."""


class ImportFinder(MetaPathFinder):
    """Finder of one library, which calls ``prepare`` at the first import of the library."""

    def __init__(self, library: str, prepare: Callable[[], None]) -> None:
        self._library, self._prepare = library, prepare

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        """Return the spec of the library; None for other libraries, and while ``prepare`` imports the library."""
        if name != self._library or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        library_spec = importlib.util.find_spec(name)
        sys.meta_path.insert(0, self)
        if library_spec is None:
            return None
        spec = ModuleSpec(name, PreparedLoader(self._import), origin=library_spec.origin, is_package=True)
        spec.submodule_search_locations = library_spec.submodule_search_locations
        return spec

    def _import(self) -> None:
        sys.meta_path.remove(self)
        self._prepare()


def prepare_imports(phantom: Phantom) -> None:
    """Prepare libraries for the phantom device when the script imports them."""
    prepared = {
        "bitsandbytes": lambda: _prepare_bitsandbytes(phantom),
        "deepspeed": lambda: _prepare_deepspeed(phantom.log_operation),
        "torchvision": lambda: _prepare_torchvision(phantom),
        "transformers.generation.stopping_criteria": _prepare_generation,
        "triton": lambda: _prepare_triton(phantom.log_operation),
    }
    for library, prepare in prepared.items():
        sys.meta_path.insert(0, ImportFinder(library, prepare))


def modeling_notes(model: "torch.nn.Module | None") -> list[str]:
    """Return a note for each effect that the prediction does not model: kernels of imported libraries, compilation.

    model: the traced model, whose layers can have such effects.
    """
    from torch.nn import DataParallel, RNNBase

    imported = {name: what for name, what in NOT_MODELED.items() if name in sys.modules}
    lines = [f"{name} was imported: memory inside {what} is not modeled" for name, what in imported.items()]
    if importlib.util.find_spec("triton") is None:
        lines += [
            f"triton is not installed: {name} ran other code than on a GPU; install it with: pip install triton"
            for name in TRITON_USERS
            if name in sys.modules
        ]
    if model is not None and any(isinstance(part, RNNBase) for part in model.modules()):
        lines.append("LSTM and GRU layers: the memory of cuDNN's kernels is that of an H200")
    if isinstance(model, DataParallel):
        lines.append("DataParallel trained on one GPU, with the whole batch: torch.cuda.device_count() is 1")
    if script_compiles_module():
        lines.append("torch.compile was called: the prediction is for the uncompiled model")
    return lines


def script_compiles_module() -> bool:
    """Return whether the script compiles a module with torch.compile."""
    return any(_compile_calls)


def record_compile_calls() -> None:
    """Record calls of torch.compile for modules; nothing is compiled."""
    import torch

    compile = torch.compile

    def recording_compile(*arguments: Any, **options: Any) -> Any:
        _compile_calls.extend(isinstance(argument, torch.nn.Module) for argument in arguments[:1])
        return compile(*arguments, **options)

    torch.compile = recording_compile


def _prepare_bitsandbytes(phantom: Phantom) -> None:
    from experiments.prediction.phantom.fake_bitsandbytes import import_bitsandbytes

    import_bitsandbytes(phantom)


def _prepare_deepspeed(log: Callable[[str], None]) -> None:
    from experiments.prediction.phantom.fake_deepspeed import replace_deepspeed_optimizers

    replace_deepspeed_optimizers(log)


def _prepare_generation() -> None:
    from experiments.prediction.script.traced.generation import ignore_ends_of_texts

    ignore_ends_of_texts()


def _prepare_torchvision(phantom: Phantom) -> None:
    from experiments.prediction.phantom.vision import prepare_torchvision

    prepare_torchvision(phantom)


def _prepare_triton(log: Callable[[str], None]) -> None:
    """Skip and log the launches of Triton's kernels. They allocate nothing: they write to existing tensors."""
    import torch
    from triton.runtime.autotuner import Autotuner, Heuristics
    from triton.runtime.jit import JITFunction

    def skip_and_log_launch(_: Any, *arguments: Any, **options: Any) -> None:
        tensors = (tensor for tensor in (*arguments, *options.values()) if isinstance(tensor, torch.Tensor))
        sizes = [{"type": "Byte", "sizes": [tensor.nbytes]} for tensor in tensors]
        log(json.dumps(["triton::kernel", *sizes]))

    for kernel in (JITFunction, Autotuner, Heuristics):
        kernel.run = skip_and_log_launch
