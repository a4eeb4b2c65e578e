"""Prepare some libraries for the phantom device when a script first imports them."""

import functools
import importlib.util
import json
import logging
import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from experiments.errors import InputError
from experiments.prediction.phantom import stand_ins
from experiments.prediction.phantom.kernels.cuda_graphs import CUDAGraph
from experiments.prediction.phantom.kernels.fake_triton import FakeModule, TritonFinder
from experiments.prediction.phantom.kernels.torchao_adam import CompiledUpdate
from experiments.prediction.phantom.library import Phantom
from experiments.prediction.script.traced import trackers
from experiments.prediction.script.traced.missing import hub, network, tokenizer, weights

if TYPE_CHECKING:
    import torch

STAND_INS = Path(stand_ins.__file__).parent
NOT_MODELED = {
    "xformers": "its attention kernels",
    "apex": "its fused kernels",
    "transformer_engine": "its fused kernels",
}
"""Libraries with their own kernels, whose scratch memory is unknown."""
NOT_COUNTED = "is not counted, so the peak can be too low"
GRAPH_MODES = ("reduce-overhead", "max-autotune")
"""Modes of torch.compile in which the compiled code captures CUDA graphs."""
GRAPHS_NOT_COUNTED = "; the pools of its CUDA graphs are not counted, so reserved memory is too low"
_compiled: set[str] = set()
"""Names of modules and functions that the script compiled, and whose compiled memory is unknown."""
_graph_modes: set[str] = set()
"""Modes of calls of torch.compile whose compiled code captures CUDA graphs."""
_modeled: set[str] = set()
"""Names of functions that the script compiled, and whose replacements allocate what the compiled code does."""
_launched: set[str] = set()
"""Names of Triton's kernels that the script launched."""


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
        "datasets.load": hub.prepare_datasets,
        "deepspeed": lambda: _prepare_deepspeed(phantom),
        "huggingface_hub.file_download": network.watch_connection,
        "huggingface_hub.hf_api": hub.skip_uploads,
        "safetensors.torch": _prepare_safetensors,
        "torch.utils.cpp_extension": _prepare_extensions,
        "torchao": _prepare_torchao,
        "torchao.optim.adam": _prepare_torchao_optimizers,
        "torchvision": lambda: _prepare_torchvision(phantom),
        "trackio": trackers.keep_trackio_local,
        "transformers.configuration_utils": weights.explain_missing_configurations,
        "transformers.generation.stopping_criteria": _prepare_generation,
        "transformers.models.whisper.generation_whisper": _prepare_whisper,
        "transformers.modeling_utils": weights.replace_missing_weights,
        "transformers.models.auto.tokenization_auto": tokenizer.replace_missing_auto_tokenizers,
        "transformers.tokenization_utils_base": tokenizer.replace_missing_tokenizers,
        "transformers.trainer": lambda: _prepare_trainer(phantom),
        "transformers.utils.hub": hub.skip_uploads_of_models,
        "triton": lambda: _prepare_triton(phantom.log_operation),
    }
    for library, prepare in prepared.items():
        sys.meta_path.insert(0, ImportFinder(library, prepare))
    sys.meta_path.append(TritonFinder())
    _add_flash_attention(phantom)


def modeling_notes(model: "torch.nn.Module | None") -> list[str]:
    """Return a note for each effect that the prediction does not model: kernels of imported libraries, compilation.

    model: the traced model, whose layers can have such effects.
    """
    from torch.nn import DataParallel, RNNBase

    imported = {name: what for name, what in NOT_MODELED.items() if name in sys.modules}
    lines = [f"{name} was imported: memory inside {what} {NOT_COUNTED}" for name, what in imported.items()]
    if _launched and isinstance(sys.modules["triton"], FakeModule):
        names = ", ".join(sorted(_launched))
        lines.append(f"triton is not installed: memory that its kernels allocate themselves {NOT_COUNTED} ({names})")
    if flash_attn := sys.modules.get("flash_attn"):
        installed = len(flash_attn.__path__) > 1
        where = "functions with equal allocations replace its kernels" if installed else "it is not installed here"
        lines.append(f"flash-attn was imported ({where}): the prediction is for a machine with flash-attn 2.8")
    if model is not None and any(isinstance(part, RNNBase) for part in model.modules()):
        where = "that of an H200, so too low or too high on other cards"
        lines.append(f"LSTM and GRU layers: the memory of cuDNN's kernels is {where}")
    if isinstance(model, DataParallel):
        reason = "torch.cuda.device_count() is 1, so the peak is too high for several GPUs"
        lines.append(f"DataParallel trained on one GPU, with the whole batch: {reason}")
    if _compiled:
        names = ", ".join(sorted(_compiled))
        line = f"torch.compile was called ({names}): the prediction is for the uncompiled code, so the peak is usually"
        lines.append(f"{line} too high{GRAPHS_NOT_COUNTED if _graph_modes else ''}")
    if captures_graphs():
        lines.append(
            "CUDA graphs were captured: the memory of their pools is counted, but not that of the driver, so the needed"
            " memory is too low"
        )
    return lines


def uses_compiled_code() -> bool:
    """Return whether the script compiled a module, or called a function that was compiled, with torch.compile."""
    return bool(_compiled or _modeled)


def captures_graphs() -> bool:
    """Return whether the script captured a CUDA graph."""
    return CUDAGraph.captures > 0


def record_compile_calls() -> None:
    """Record modules that are passed to torch.compile, and calls of functions that were passed; compile nothing.

    A library may compile functions that the script never calls. These are not recorded.
    """
    import torch

    compile = torch.compile

    def recording_compile(*arguments: Any, **options: Any) -> Any:
        target = arguments[0] if arguments else options.get("model")
        if isinstance(target, CompiledUpdate):
            _modeled.add(type(target).__name__)
            return target
        if options.get("mode") in GRAPH_MODES or (options.get("options") or {}).get("triton.cudagraphs"):
            _graph_modes.add(options.get("mode") or "options")
        compiled = compile(*arguments, **options)
        if isinstance(target, torch.nn.Module):
            _compiled.add(type(target).__name__)
            return compiled
        return compiled if target is None else _record_calls(compiled)

    torch.compile = recording_compile


def _record_calls(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def recorded(*arguments: Any, **options: Any) -> Any:
        _compiled.add(getattr(function, "__qualname__", repr(function)))
        return function(*arguments, **options)

    return recorded


def _add_flash_attention(phantom: Phantom) -> None:
    """Make the stand-in for flash-attn importable in place of an installed flash-attn, whose kernels need a GPU."""
    from experiments.prediction.phantom.kernels.flash_attention import Attention

    Attention.phantom = phantom
    sys.path.insert(1, str(STAND_INS))


def _prepare_bitsandbytes(phantom: Phantom) -> None:
    from experiments.prediction.phantom.fake_bitsandbytes import import_bitsandbytes

    import_bitsandbytes(phantom)


def _prepare_deepspeed(phantom: Phantom) -> None:
    from experiments.prediction.phantom.fake_deepspeed import replace_deepspeed_optimizers
    from experiments.prediction.phantom.host_work import log_checkpoints_of_deepspeed

    replace_deepspeed_optimizers(phantom.log_operation)
    log_checkpoints_of_deepspeed(phantom)


def _prepare_trainer(phantom: Phantom) -> None:
    from experiments.prediction.phantom.host_work import log_steps_of_trainer

    log_steps_of_trainer(phantom)


def _prepare_extensions() -> None:
    """Let the error of an extension whose CUDA code cannot be compiled name the extension, not CUDA_HOME."""
    from torch.utils import cpp_extension

    def name_in_error(build: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(build)
        def build_or_name(name: str, *arguments: Any, **options: Any) -> Any:
            try:
                return build(name, *arguments, **options)
            except OSError as error:
                if "CUDA_HOME" not in str(error):
                    raise
                raise InputError(
                    f"the extension {name} has CUDA code, which needs CUDA's compiler (nvcc) and a GPU; "
                    "predict the program without this extension"
                ) from None

        return build_or_name

    for builder in ("_jit_compile", "CUDAExtension"):
        setattr(cpp_extension, builder, name_in_error(getattr(cpp_extension, builder)))


def _prepare_generation() -> None:
    from experiments.prediction.script.traced.generation import ignore_ends_of_texts

    ignore_ends_of_texts()


def _prepare_whisper() -> None:
    from experiments.prediction.script.traced.generation import split_transcripts_on_host

    split_transcripts_on_host()


def _prepare_safetensors() -> None:
    from experiments.prediction.script.traced.missing.files import replace_missing_safetensors

    replace_missing_safetensors()


def _prepare_torchao() -> None:
    """Import torchao without its warnings about kernels that need a GPU, and about names that PyTorch deprecates."""
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import torchao  # noqa: F401


def _prepare_torchao_optimizers() -> None:
    """Replace the compiled update of a parameter by one that allocates what the compiled code allocates."""
    from torchao.optim import adam

    adam.single_param_adam = CompiledUpdate(_record_calls(adam.single_param_adam))


def _prepare_torchvision(phantom: Phantom) -> None:
    from experiments.prediction.phantom.vision import prepare_torchvision

    prepare_torchvision(phantom)


def _prepare_triton(log: Callable[[str], None]) -> None:
    """Skip and log the launches of Triton's kernels. They allocate nothing: they write to existing tensors."""
    import torch
    from triton.runtime.autotuner import Autotuner, Heuristics
    from triton.runtime.jit import JITFunction

    def skip_and_log_launch(kernel: Any, *arguments: Any, **options: Any) -> None:
        _launched.add(getattr(kernel, "__name__", "kernel"))
        tensors = (tensor for tensor in (*arguments, *options.values()) if isinstance(tensor, torch.Tensor))
        sizes = [{"type": "Byte", "sizes": [tensor.nbytes]} for tensor in tensors]
        log(json.dumps(["triton::kernel", *sizes]))

    for kernel in (JITFunction, Autotuner, Heuristics):
        kernel.run = skip_and_log_launch
    setattr(torch.library, "wrap_triton", lambda kernel: kernel)  # noqa: B010 - mypy rejects the assignment
