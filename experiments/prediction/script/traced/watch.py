"""Find the phases, modules and categories of tensors of an unchanged training.

Global hooks of PyTorch report when the forward pass of a module and the step of an optimizer begin and end. The
function torch.autograd.backward is replaced by one that reports backward passes. A step of an optimizer counts only if
a backward pass ran since the optimizer's previous step. Therefore, many steps in a row, one for each parameter or
shard, count as one.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.modules import module as modules
from torch.optim import optimizer as optimizers

from experiments.prediction.peak import MemoryTags
from experiments.prediction.phantom.kernels.cuda_graphs import CUDAGraph
from experiments.prediction.script.traced.attribution.modules import ModuleTracker, find_tensors
from experiments.prediction.times.record import StepRecorder
from experiments.results.memory_parts import GRADIENTS, OPTIMIZER, PARAMETERS
from experiments.results.schema import Phase

MAX_WARM_UP_STEPS = 11
"""Number of warm-up steps before the capture of a CUDA graph in PyTorch's documentation, with DDP (without DDP: 3)."""


class TrainingWatcher:
    """Watcher of the training in this process, from the call of ``install`` on.

    Calls ``on_enough_steps`` when an optimizer is about to take one step more than ``steps``. By then all optimizer
    state exists, and another forward and backward pass has run with this state. Steps on another stream than the
    default one may warm up a CUDA graph, so MAX_WARM_UP_STEPS more of them are allowed. If a step is captured in a
    graph, the training goes on until the graph has been replayed ``steps`` times.
    """

    def __init__(
        self, tags: MemoryTags, recorder: StepRecorder, steps: int, on_enough_steps: Callable[[], None]
    ) -> None:
        self.tags, self.recorder = tags, recorder
        self.model: torch.nn.Module | None = None
        self.optimizers: dict[str, None] = {}
        self.modules = ModuleTracker(tags)
        self._max_steps, self._on_enough_steps = steps, on_enough_steps
        self._parameter_counts: dict[int, int] = {}
        self._backward_count = self._backward_depth = 0
        self.steps_by_optimizer: dict[int, int] = {}
        self._backwards_at_last_step: dict[int, int] = {}
        self._captured_steps = self._replays = 0

    @property
    def steps(self) -> int:
        """The number of optimizer steps; with several optimizers, the highest number."""
        return max(self.steps_by_optimizer.values(), default=0)

    def install(self) -> None:
        """Watch all modules and optimizers of the process."""
        modules.register_module_forward_pre_hook(self._on_forward_start)
        modules.register_module_forward_hook(self._on_forward_end, always_call=True)
        optimizers.register_optimizer_step_pre_hook(self._on_step_start)
        optimizers.register_optimizer_step_post_hook(self._on_step_end)
        torch.autograd.backward = self._wrap_backward(torch.autograd.backward)
        CUDAGraph.on_replay = self._on_replay

    def _on_forward_start(self, module: torch.nn.Module, _: Any) -> None:
        if not self.modules.in_forward and not self._backward_depth:
            self._begin_forward(module)
        self.modules.begin_forward(module)

    def _on_forward_end(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG002 - a hook
        self.modules.end_forward(output)
        if not self.modules.in_forward:
            self.tags.tag_cache(output)

    def _begin_forward(self, module: torch.nn.Module) -> None:
        if not self.modules.has_named(module):
            self.modules.name_parts(module)
            self.tags.tag_tensors(PARAMETERS.key, module.parameters())
        if id(module) not in self._parameter_counts:
            self._parameter_counts[id(module)] = sum(map(whole_size, module.parameters()))
        if self.model is None or self._model_priority(module) > self._model_priority(self.model):
            self.model = module
        self._begin_phase("forward")

    def _begin_phase(self, phase: Phase) -> None:
        self.recorder.begin_phase(phase)
        if self.tags.phases[-1][1] != phase:
            self.tags.begin_phase(phase)

    def _model_priority(self, module: torch.nn.Module) -> tuple[bool, int]:
        """Return the sort key that selects the model: a module in training mode with the most parameters."""
        return module.training, self._parameter_counts[id(module)]

    def _wrap_backward(self, backward: Callable[..., None]) -> Callable[..., None]:
        def watched_backward(*arguments: Any, **options: Any) -> None:
            if not self._backward_depth:
                self._backward_count += 1
                self.recorder.begin_phase("backward")
                self.tags.begin_phase("backward")
            self._backward_depth += 1
            try:
                backward(*arguments, **options)
            finally:
                self._backward_depth -= 1
                if not self._backward_depth:
                    self.modules.end_backward()

        return watched_backward

    def _on_step_start(self, optimizer: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Begin a step. If ``step`` gets a closure, the step begins after the closure's forward and backward pass.

        arguments: the arguments of the method ``step``; the first is the optimizer.
        """
        closure = options.get("closure") or (arguments[1] if len(arguments) > 1 else None)
        if not callable(closure):
            self._begin_step(optimizer)
            return None

        def watched_closure(*closure_arguments: Any, **closure_options: Any) -> Any:
            loss = closure(*closure_arguments, **closure_options)
            self._begin_step(optimizer)
            return loss

        return (optimizer, watched_closure), {name: value for name, value in options.items() if name != "closure"}

    def _begin_step(self, optimizer: Any) -> None:
        key = id(optimizer)
        if (
            self._backwards_at_last_step.get(key) != self._backward_count
            and self.steps_by_optimizer.get(key, 0) >= self._max_steps + _extra_steps()
        ):
            self._on_enough_steps()
        parameters = [one for group in optimizer.param_groups for one in group["params"]]
        self.tags.tag_tensors(PARAMETERS.key, parameters)
        self.tags.tag_tensors(GRADIENTS.key, (one.grad for one in parameters if one.grad is not None))
        self.modules.set_owners(parameters)
        self._begin_phase("optimizer step")

    def _on_step_end(self, optimizer: Any, *_: Any) -> None:
        key = id(optimizer)
        self.optimizers[type(optimizer).__name__] = None
        self.tags.tag_tensors(OPTIMIZER.key, find_tensors(list(optimizer.state.values())))
        self.modules.set_owners_of_state(optimizer.state)
        if self._backwards_at_last_step.get(key) != self._backward_count:
            self._backwards_at_last_step[key] = self._backward_count
            self.steps_by_optimizer[key] = self.steps_by_optimizer.get(key, 0) + 1
            self._captured_steps += torch.cuda.is_current_stream_capturing()
            self.recorder.end_step(key, "backward" if self._backward_depth else "optimizer step")

    def _on_replay(self) -> None:
        """Count the replay of a CUDA graph as a step if an optimizer's step was captured."""
        if self._captured_steps and self._replays >= self._max_steps:
            self._on_enough_steps()
        self._replays += 1


def _extra_steps() -> int:
    """Return how many more steps are allowed on the current stream, because they may warm up a CUDA graph."""
    return MAX_WARM_UP_STEPS if torch.cuda.current_stream() != torch.cuda.default_stream() else 0


def whole_size(parameter: torch.Tensor) -> int:
    """Return the number of elements of a parameter on all ranks together; DeepSpeed's ZeRO-3 keeps it in ds_numel."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))
