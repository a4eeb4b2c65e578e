"""Libraries that reach for CUDA when they are imported: prepared for the phantom device at their first import."""

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
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


class AtImport:
    """A finder that calls a function in place of a library's own import; the function imports it."""

    def __init__(self, library: str, prepare: Callable[[], None]) -> None:
        self._library, self._prepare = library, prepare

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        """Prepare the library when it is looked for, and leave finding it to others."""
        if name == self._library and self in sys.meta_path:
            sys.meta_path.remove(self)
            if importlib.util.find_spec(name):
                self._prepare()
        return None


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
