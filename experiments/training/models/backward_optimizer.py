"""Update the parameters during the backward pass, so that the gradients of a model never exist all at once."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn import Parameter


class BackwardOptimizer(torch.optim.Optimizer):
    """Optimizer that updates each parameter as soon as its gradient is complete, and then frees the gradient.

    build: creates the optimizer of one parameter; each parameter has a separate one. ``step`` only runs its closure,
    because the backward pass has already updated the parameters. Gradients cannot be accumulated over several backward
    passes, and cannot be changed before the update.
    """

    def __init__(
        self, build: Callable[[Iterable[Parameter]], torch.optim.Optimizer], parameters: Iterable[Parameter]
    ) -> None:
        self._optimizers = {parameter: build([parameter]) for parameter in parameters}
        first = next(iter(self._optimizers.values()))
        super().__init__(list(self._optimizers), dict(first.defaults))
        for parameter in self._optimizers:
            parameter.register_post_accumulate_grad_hook(self._update)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Run ``closure``, whose backward pass updates the parameters, and return its loss; None without a closure."""
        if closure is None:
            return None
        with torch.enable_grad():
            return closure()

    def _update(self, parameter: torch.Tensor) -> None:
        assert isinstance(parameter, Parameter)
        optimizer = self._optimizers[parameter]
        optimizer.param_groups[0]["lr"] = self.param_groups[0]["lr"]
        optimizer.step()
        optimizer.zero_grad()
        self.state[parameter] = optimizer.state[parameter]
