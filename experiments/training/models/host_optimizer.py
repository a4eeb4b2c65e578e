"""Update parameters with an AdamW whose state is in host memory."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch.nn import Parameter
from torch.optim.adamw import adamw


class HostCopies(NamedTuple):
    """A parameter, and copies of it and of its gradient in host memory.

    copied: event after which the copies are complete; None: they are already complete.
    """

    parameter: Parameter
    weight: torch.Tensor
    gradient: torch.Tensor
    copied: torch.cuda.Event | None


class HostAdamW(torch.optim.AdamW):
    """AdamW that keeps its state in host memory. The CPU computes the updates, one parameter at a time.

    During the update of a parameter, the next parameter and its gradient are copied to the host. Gradients stay on the
    GPU until they are cleared, so that they can be accumulated.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Run ``closure``, if there is one, update the parameters, and return the loss of ``closure``."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for one in _prefetch_copies(group["params"]):
                if one.copied is not None:
                    one.copied.synchronize()
                self._update(group, one)
                one.parameter.copy_(one.weight, non_blocking=True)
        return loss

    def _update(self, group: dict[str, Any], one: HostCopies) -> None:
        state = self.state[one.parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(one.weight)
            state["exp_avg_sq"] = torch.zeros_like(one.weight)
        beta1, beta2 = group["betas"]
        adamw(
            [one.weight],
            [one.gradient],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [state["step"]],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _prefetch_copies(parameters: Iterable[Parameter]) -> Iterator[HostCopies]:
    """Yield the host copies of each parameter with a gradient. Before that, begin to copy the next parameter."""
    copies = (_copy_to_host(parameter) for parameter in parameters if parameter.grad is not None)
    current = next(copies, None)
    while current is not None:
        following = next(copies, None)
        yield current
        current = following


def _copy_to_host(parameter: Parameter) -> HostCopies:
    """Begin to copy a parameter and its gradient into pinned host memory."""
    assert parameter.grad is not None
    on_gpu = parameter.is_cuda
    weight, gradient = (
        torch.empty_like(tensor, device="cpu", pin_memory=on_gpu).copy_(tensor, non_blocking=True)
        for tensor in (parameter.detach(), parameter.grad)
    )
    copied = torch.cuda.current_stream().record_event() if on_gpu else None
    return HostCopies(parameter, weight, gradient, copied)
