"""Find the phases, the tensors' categories and the modules of a training that knows nothing of this program.

PyTorch's global hooks show when a module's forward pass and an optimizer's step begin and end; `backward` is replaced.
An optimizer's step counts when there was a backward pass since its last one, so that an optimizer that steps once per
parameter or per shard counts once.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.modules import module as modules
from torch.optim import optimizer as optimizers

from experiments.prediction.peak import MemoryTags
from experiments.prediction.script.traced.lines import Marks
from experiments.results.memory_parts import GRADIENTS, OPTIMIZER, PARAMETERS


class Watcher:
    """Watches the training of this process from ``install`` on.

    Calls ``enough`` when an optimizer is about to take a step more than ``steps``: the training then has what it keeps
    between steps, and has gone through another forward and backward pass with it.
    """

    def __init__(self, tags: MemoryTags, steps: int, enough: Callable[[], None]) -> None:
        self.tags = tags
        self.model: torch.nn.Module | None = None
        self.optimizers: dict[str, None] = {}
        self.modules = Marks()
        self._steps, self._enough = steps, enough
        self._names: dict[int, str] = {}
        self._sizes: dict[int, int] = {}
        self._active: list[str] = []
        self._backwards = self._in_backward = 0
        self._taken: dict[int, int] = {}
        self._stepped_after: dict[int, int] = {}

    @property
    def steps(self) -> int:
        """The steps that an optimizer has taken; with several, the most."""
        return max(self._taken.values(), default=0)

    def install(self) -> None:
        """Watch all modules and optimizers of the process."""
        modules.register_module_forward_pre_hook(self._enters)
        modules.register_module_forward_hook(self._leaves, always_call=True)
        optimizers.register_optimizer_step_pre_hook(self._step_called)
        optimizers.register_optimizer_step_post_hook(self._stepped)
        torch.autograd.backward = self._watched_backward(torch.autograd.backward)

    def _enters(self, module: torch.nn.Module, _: Any) -> None:
        if not self._active and not self._in_backward:
            self._begins_forward(module)
        self._active.append(self._names.get(id(module), type(module).__name__))
        self.modules.begin(self.tags.event_count, self._active[-1])

    def _leaves(self, *_: Any) -> None:
        if self._active:
            self._active.pop()
        self.modules.begin(self.tags.event_count, self._active[-1] if self._active else "")

    def _begins_forward(self, module: torch.nn.Module) -> None:
        if id(module) not in self._names:
            self._names |= {id(part): f"{name or type(module).__name__}" for name, part in module.named_modules()}
            self.tags.tag_tensors(PARAMETERS.key, module.parameters())
        if id(module) not in self._sizes:
            self._sizes[id(module)] = sum(one.numel() for one in module.parameters())
        if self.model is None or self._rank(module) > self._rank(self.model):
            self.model = module
        if self.tags.phases[-1][1] != "forward":
            self.tags.begin_phase("forward")

    def _rank(self, module: torch.nn.Module) -> tuple[bool, int]:
        """Return what makes a module the training's model: it trains, and has the most parameters."""
        return module.training, self._sizes[id(module)]

    def _watched_backward(self, backward: Callable[..., None]) -> Callable[..., None]:
        def watched(*arguments: Any, **named: Any) -> None:
            if not self._in_backward:
                self._backwards += 1
                self.tags.begin_phase("backward")
            self._in_backward += 1
            try:
                backward(*arguments, **named)
            finally:
                self._in_backward -= 1

        return watched

    def _step_called(self, optimizer: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Begin a step; one with a closure begins when the closure has run, since that has both passes in it.

        arguments: of the method, the optimizer first.
        """
        closure = named.get("closure") or (arguments[1] if len(arguments) > 1 else None)
        if not callable(closure):
            self._begins_step(optimizer)
            return None

        def watched(*given: Any, **more: Any) -> Any:
            loss = closure(*given, **more)
            self._begins_step(optimizer)
            return loss

        return (optimizer, watched), {name: value for name, value in named.items() if name != "closure"}

    def _begins_step(self, optimizer: Any) -> None:
        key = id(optimizer)
        if self._stepped_after.get(key) != self._backwards and self._taken.get(key, 0) >= self._steps:
            self._enough()
        parameters = [one for group in optimizer.param_groups for one in group["params"]]
        self.tags.tag_tensors(PARAMETERS.key, parameters)
        self.tags.tag_tensors(GRADIENTS.key, (one.grad for one in parameters if one.grad is not None))
        if self.tags.phases[-1][1] != "optimizer step":
            self.tags.begin_phase("optimizer step")

    def _stepped(self, optimizer: Any, *_: Any) -> None:
        key = id(optimizer)
        self.optimizers[type(optimizer).__name__] = None
        self.tags.tag_tensors(OPTIMIZER.key, _tensors(list(optimizer.state.values())))
        if self._stepped_after.get(key) != self._backwards:
            self._stepped_after[key] = self._backwards
            self._taken[key] = self._taken.get(key, 0) + 1


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested dictionaries, lists and quantized states."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
