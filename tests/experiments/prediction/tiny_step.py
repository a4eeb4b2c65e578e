"""Steps of a tiny language model, on the processor or on the phantom device; prints its memory at the peak as JSON.

    python -m tests.experiments.prediction.tiny_step real
    python -m tests.experiments.prediction.tiny_step traced CACHE

This is a separate program, because the phantom device must exist before torch is imported. The bytes are those that
tensors requested, without the rounding of a caching allocator.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

BATCH, TOKENS, VOCABULARY, WIDTH, LAYERS, STEPS = 8, 128, 4096, 256, 4, 2
CATEGORIES = ("others", "params", "grads")


def build(device: str) -> Any:
    """An embedding, transformer layers and an output head, in 32 bit on ``device``."""
    from torch import nn

    layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, 0.0, batch_first=True, norm_first=True, device=device)
    layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
    embedding = nn.Embedding(VOCABULARY, WIDTH, device=device)
    return nn.Sequential(embedding, layers, nn.Linear(WIDTH, VOCABULARY, device=device))


def train(model: Any, device: str, watch: Any = lambda category, tensors: None) -> None:
    """Train with AdamW; call ``watch`` with the parameters, and with the gradients when they exist."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    watch("params", list(model.parameters()))
    for _ in range(STEPS):
        ids = torch.zeros(BATCH, TOKENS, dtype=torch.long, device=device)
        with sdpa_kernel(SDPBackend.MATH):
            loss = torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
        optimizer.zero_grad()
        loss.backward()
        watch("grads", [parameter.grad for parameter in model.parameters()])
        optimizer.step()


def real() -> int:
    """Return the peak of the CPU allocator according to torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    model = build("cpu")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        train(model, "cpu")
    allocated = peak = sum(parameter.nbytes for parameter in model.parameters())
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    return peak


def traced(cache: Path) -> dict[str, int]:
    """Return the bytes at the peak of the phantom device's log, by category."""
    from experiments.prediction.phantom.library import load
    from experiments.suites.attention_kernels import KernelProperties

    phantom = load(cache)
    from experiments.prediction.phantom.cuda import replace_cuda
    from experiments.suites.cards import card_named

    def tag(category: str, tensors: list[Any]) -> None:
        phantom.tag([tensor.untyped_storage().data_ptr() for tensor in tensors], CATEGORIES.index(category))

    # Without multiprocessors no scratch memory of sums, which the processor does not need either.
    phantom.install(
        KernelProperties(
            flash=False,
            memory_efficient=True,
            memory_efficient_bfloat16=False,
            cudnn_width=0,
            workspace_bytes=0,
            multiprocessors=0,
            attention_generation=80,
        )
    )
    replace_cuda(phantom, card_named("h200_141gb"))
    train(build("cuda"), "cuda", tag)
    alive = phantom.bytes_by_category(phantom.replay(2**62).peak_event, len(CATEGORIES))
    return dict(zip(CATEGORIES, alive, strict=True))


if __name__ == "__main__":
    print(json.dumps(real() if sys.argv[1] == "real" else traced(Path(sys.argv[2]))), flush=True)
    os._exit(0)  # a thread of autograd that still frees tensors would end an exiting interpreter with SIGABRT
