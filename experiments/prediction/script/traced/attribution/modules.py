"""Find the module of a training to which each allocation on the phantom device belongs.

A parameter, its gradient and its optimizer state belong to the module that has the parameter. Other memory belongs to
the innermost module whose forward or backward pass allocates it. The backward pass of a module begins when the gradient
of its output is known, and ends when that of another module begins.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

from experiments.prediction.peak import MemoryTags
from experiments.prediction.script.traced.attribution.lines import NamedSpans

OBSERVED = "llm_testbed_module"
"""Key in the metadata of a node of the autograd graph: the node is the end of a module's forward pass."""


class ModuleTracker:
    """Tracker of the modules to which allocations belong."""

    def __init__(self, tags: MemoryTags) -> None:
        self._tags = tags
        self.spans = NamedSpans()
        self._names: dict[int, str] = {}
        self._owners: dict[int, str] = {}
        self._forward: list[str] = []
        self._backward = ""

    @property
    def in_forward(self) -> bool:
        """Whether the forward pass of a module runs."""
        return bool(self._forward)

    def has_named(self, model: torch.nn.Module) -> bool:
        return id(model) in self._names

    def name_parts(self, model: torch.nn.Module) -> None:
        """Name all modules of the model and the owners of its parameters."""
        owners: dict[int, str] = {}
        for name, part in model.named_modules():
            self._names[id(part)] = name or type(model).__name__
            for parameter in part.parameters(recurse=False):
                owners.setdefault(id(parameter), self._names[id(part)])
            self._tags.set_owner(self._names[id(part)], part.buffers(recurse=False))
        self._owners |= owners
        self.set_owners(model.parameters())

    def set_owners(self, parameters: Iterable[torch.Tensor]) -> None:
        """Let the memory of parameters and their gradients belong to the modules that have the parameters."""
        for parameter in parameters:
            self._set_owner(parameter, parameter, parameter.grad)

    def set_owners_of_state(self, state: Mapping[Any, Any]) -> None:
        """Let the optimizer state of each parameter belong to the module that has the parameter."""
        for parameter, values in state.items():
            self._set_owner(parameter, *find_tensors(values))

    def _set_owner(self, parameter: Any, *tensors: torch.Tensor | None) -> None:
        if owner := self._owners.get(id(parameter)):
            self._tags.set_owner(owner, (one for one in tensors if one is not None))

    def begin_forward(self, module: torch.nn.Module) -> None:
        self._forward.append(self._names.get(id(module), type(module).__name__))
        self._begin_span(self._forward[-1])

    def end_forward(self, output: Any) -> None:
        if self._forward:
            self._observe_backward(self._forward.pop(), output)
        self._begin_span(self._forward[-1] if self._forward else self._backward)

    def end_backward(self) -> None:
        self._begin_backward("")

    def _observe_backward(self, name: str, output: Any) -> None:
        """Let the backward pass of the module begin when the gradient of its output is known."""
        nodes: set[Any] = {one.grad_fn for one in find_tensors(output) if one.grad_fn is not None}
        for node in nodes:
            if OBSERVED not in node.metadata:  # else the output is that of an inner module
                node.metadata[OBSERVED] = name
                node.register_prehook(partial(self._on_gradient, name))

    def _on_gradient(self, name: str, _: Any) -> None:
        self._begin_backward(name)

    def _begin_backward(self, name: str) -> None:
        self._backward = name
        if not self._forward:
            self._begin_span(name)

    def _begin_span(self, name: str) -> None:
        self.spans.begin(self._tags.event_count, name)


def find_tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested dictionaries, lists and tuples."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from find_tensors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from find_tensors(one)
