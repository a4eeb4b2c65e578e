"""Programs that run on the phantom device; print {name of the program: its result} as JSON.

    python -m tests.experiments.prediction.phantom.probes CACHE

This is a separate program, because the phantom device must exist before torch is imported. Each probe is a function of
the device and runs in a separate fork, so that it starts with an empty log.
"""

import gc
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tests.experiments.prediction.phantom import attention_probes, kernel_probes, stream_probes

MIB = 1024**2


def block(size: int) -> Any:
    """Return a tensor with this number of bytes on the device."""
    import torch

    return torch.empty(size, dtype=torch.uint8, device="cuda")


def added(phantom: Any, make: Callable[[], Any]) -> tuple[int, int]:
    """Return the bytes that ``make`` allocates and reserves, with an empty cache of the allocator."""
    phantom.empty_cache()
    before = phantom.stats()
    held = make()
    after = phantom.stats()
    del held
    return after[0] - before[0], after[1] - before[1]


def sizes(phantom: Any) -> Any:
    asked = (0, 1, 512, 513, MIB, MIB + 1, 10 * MIB - 512, 10 * MIB, 10 * MIB + 1, 11 * MIB, 13 * MIB - 512)
    return {size: added(phantom, partial(block, size)) for size in asked}


def split_and_merged(phantom: Any) -> Any:
    def reserved(make: Callable[[], Any]) -> int:
        phantom.empty_cache()
        return added(phantom, make)[1]

    def three_freed_then_whole() -> Any:
        parts = [block(4 * MIB) for _ in range(5)]
        for place in (0, 2, 1, 4, 3):
            parts[place] = None
        return [block(9 * MIB), block(9 * MIB)]

    def best_fit() -> Any:
        parts = [block(30 * MIB), block(12 * MIB)]
        parts.clear()
        return [block(12 * MIB), block(30 * MIB)]

    return {
        "4096 of 512 bytes": reserved(lambda: [block(512) for _ in range(4096)]),
        "4097 of 512 bytes": reserved(lambda: [block(512) for _ in range(4097)]),
        "4 of 5 MiB": reserved(lambda: [block(5 * MIB) for _ in range(4)]),
        "5 of 5 MiB": reserved(lambda: [block(5 * MIB) for _ in range(5)]),
        "2 of 1 MiB and 2 of 2 MiB": reserved(lambda: [block(size * MIB) for size in (1, 2, 1, 2)]),
        "9 and 9 MiB of merged neighbors": reserved(three_freed_then_whole),
        "12 and 30 MiB after 30 and 12": reserved(best_fit),
    }


def replayed(phantom: Any) -> Any:
    kept = block(4 * MIB)
    first = block(20 * MIB)
    del first
    second = block(24 * MIB)
    del kept, second
    return {capacity: asdict(phantom.replay(capacity * MIB)) for capacity in (1000, 64, 63, 44, 43, 39, 19)}


def resized(phantom: Any) -> Any:
    import torch

    tensor = torch.empty(MIB, device="cuda")
    view, found = tensor.view(1024, 1024), []
    for size in (0, 4 * MIB, 4 * MIB, 8 * MIB):
        tensor.untyped_storage().resize_(size)
        found.append([phantom.stats()[0], view.untyped_storage().nbytes(), phantom.stats()[4]])
    return found


def workspaces(phantom: Any) -> Any:
    import torch

    from experiments.suites.attention_kernels import kernel_properties
    from experiments.suites.cards import card_named

    phantom.install(kernel_properties(card_named("h200_141gb")))
    left, right = (torch.empty(128, 128, device="cuda", requires_grad=True) for _ in range(2))
    found = [phantom.stats()[0]]

    def product() -> Any:
        made = left @ right
        found.append(phantom.stats()[0] - made.nbytes)
        return made

    product()
    product().sum().backward()
    found.append(phantom.stats()[0] - left.grad.nbytes - right.grad.nbytes)
    left.grad = right.grad = None
    product().sum().backward()
    left.grad = right.grad = None
    with torch.cuda.stream(torch.cuda.Stream()):
        product()
    return [(now - found[0]) / MIB for now in found]


def host(phantom: Any) -> Any:
    import psutil
    import torch

    phantom.count_host_memory()
    before = psutil.Process().memory_info().rss
    tensors = [torch.zeros(1024 * MIB, dtype=torch.uint8) for _ in range(8)]
    tensors[0].copy_(tensors[1])
    tensors[0].fill_(1)
    moved = tensors[0].to("cuda").to("cpu")
    taken = psutil.Process().memory_info().rss - before
    peak = phantom.host_peak()
    del tensors, moved
    small = torch.full((1000,), 7.0)
    private = psutil.Process().memory_info().data
    offloaded = [torch.empty(MIB // 2, pin_memory=True).copy_(torch.empty(MIB // 2, device="cuda")) for _ in range(256)]
    offloaded_taken = psutil.Process().memory_info().data - private
    mask = torch.arange(MIB // 4).pin_memory()
    return {
        "taken": taken,
        "peak": peak,
        "small": small.clone().sum().item(),
        "offloaded": sum(one.nbytes for one in offloaded),
        "taken by offloaded": offloaded_taken,
        "sum of pinned integers": mask.sum().item(),
    }


def values(phantom: Any) -> Any:
    import torch

    numbers = torch.tensor([[3, 0, 5], [0, 2, 0]], device="cuda")
    floats = torch.ones(2, 3, device="cuda")
    mask = numbers > 0
    written, filled = numbers.clone(), numbers.clone()
    written[mask] = 9
    filled.masked_fill_(~mask, -1)
    return {
        "sum": numbers.sum().item(),
        "largest": numbers.max().item(),
        "equal": torch.equal(numbers, numbers.clone()),
        "unequal": torch.equal(numbers, numbers + 1),
        "mask": mask.tolist(),
        "indexed": numbers[mask].tolist(),
        "selected": numbers.masked_select(mask).tolist(),
        "nonzero": numbers.nonzero().tolist(),
        "written": written.tolist(),
        "filled": filled.tolist(),
        "arange": torch.arange(2, 11, 3, device="cuda").tolist(),
        "cumulated": mask.long().cumsum(1).tolist(),
        "column": numbers[:, 1].tolist(),
        "turned": numbers.t().contiguous().tolist(),
        "from host and back": torch.tensor([1, 2]).to("cuda").cpu().tolist(),
        "floats": floats.tolist(),
        "float item": floats.sum().item(),
        "floats indexed": list(floats[mask].shape),
        "floats selected": list(floats.masked_select(mask).shape),
    }


def shapes(phantom: Any) -> Any:
    import torch
    from torch import nn
    from torch.nn import functional as F

    def cases() -> dict[str, tuple[Any, tuple[int, ...]]]:
        return {
            "linear": (nn.Linear(8, 6), (2, 5, 8)),
            "conv": (nn.Conv2d(3, 4, 3, stride=2, padding=1), (2, 3, 9, 8)),
            "layer norm": (nn.LayerNorm((4, 8)), (2, 3, 4, 8)),
            "dropout": (nn.Dropout(0.5), (3, 7)),
            "relu": (nn.ReLU(), (3, 7)),
            "gelu": (nn.GELU(), (3, 7)),
            "turned": (nn.Flatten(0, 1), (3, 7, 2)),
        }

    def describe(tensor: Any) -> Any:
        return [list(tensor.shape), list(tensor.stride()), str(tensor.dtype)]

    def run_backward(module: Any, given: Any) -> Any:
        out = module(given)
        out.backward(torch.empty_like(out))
        grads = [parameter.grad for parameter in module.parameters()] if isinstance(module, nn.Module) else []
        return [describe(tensor) for tensor in (out, *([given.grad] if given.is_floating_point() else []), *grads)]

    def shapes_on(device: str) -> Any:
        digests = {}
        for dtype in (torch.float32, torch.bfloat16):
            for name, (module, size) in cases().items():
                given = torch.zeros(size, dtype=dtype, device=device, requires_grad=True)
                digests[f"{name} {dtype}"] = run_backward(module.to(device, dtype), given)
            ids = torch.zeros(2, 5, dtype=torch.long, device=device)
            digests[f"embedding {dtype}"] = run_backward(nn.Embedding(11, 8).to(device, dtype), ids)
            logits = torch.zeros(10, 11, dtype=dtype, device=device, requires_grad=True)
            labels = ids.flatten()
            digests[f"cross entropy {dtype}"] = run_backward(
                lambda given, labels=labels: F.cross_entropy(given, labels), logits
            )
            matrix = torch.zeros(2, 6, 3, dtype=dtype, device=device, requires_grad=True)
            digests[f"matmul {dtype}"] = run_backward(lambda given: given @ given.transpose(1, 2), matrix)
        return digests

    return {"phantom": shapes_on("cuda"), "processor": shapes_on("cpu")}


def kept_for_backward(phantom: Any) -> Any:
    import torch
    from torch.nn import functional as F

    given = torch.empty(1024, 1024, dtype=torch.bfloat16, device="cuda", requires_grad=True)

    def kept_bytes(operation: Callable[[Any], Any]) -> int:
        return added(phantom, lambda: operation(given))[0]

    return {
        "dropout": kept_bytes(lambda given: F.dropout(given, 0.1)),
        "layer norm": kept_bytes(lambda given: F.layer_norm(given, (1024,))),
        "relu": kept_bytes(F.relu),
    }


def attention(phantom: Any) -> Any:
    import torch
    from torch.nn import functional as F

    from experiments.suites.attention_kernels import kernel_properties
    from experiments.suites.cards import card_named

    def backward_kernel(
        card: str = "a100_80gb", type: Any = torch.bfloat16, keys: int = 16, heads: int = 4, width: int = 64,
        mask: Any = None, **options: Any,
    ) -> str:  # fmt: skip
        phantom.install(kernel_properties(card_named(card)))
        query = torch.empty(2, 4, 16, width, dtype=type, device="cuda", requires_grad=True)
        key = torch.empty(2, heads, keys, width, dtype=type, device="cuda", requires_grad=True)
        out = F.scaled_dot_product_attention(query, key, key, mask, **options)
        out.backward(torch.empty_like(out))
        assert query.grad.shape == query.shape
        return out.grad_fn.name()

    whole = torch.empty(2, 1, 16, 16, dtype=torch.bfloat16, device="cuda")
    turned = torch.empty(2, 1, 16, 16, dtype=torch.bfloat16, device="cuda").transpose(2, 3)
    v100, half, mi250x, mi100 = "v100_32gb", torch.float16, "mi250x_gcd_64gb", "mi100_32gb"
    return {
        "bfloat": backward_kernel(),
        "bfloat on AMD": backward_kernel(mi250x),
        "half on AMD without kernels": backward_kernel(mi100, half),
        "32 bit on AMD without kernels": backward_kernel(mi100, torch.float32),
        "32 bit": backward_kernel(type=torch.float32),
        "64 bit": backward_kernel(type=torch.float64),
        "mask": backward_kernel(mask=whole),
        "turned mask": backward_kernel(mask=turned),
        "bfloat without its kernels": backward_kernel(v100),
        "half without flash": backward_kernel(v100, half),
        "32 bit without flash": backward_kernel(v100, torch.float32),
        "causal": backward_kernel(is_causal=True),
        "causal, not square": backward_kernel(is_causal=True, keys=24),
        "not square": backward_kernel(keys=24),
        "grouped heads": backward_kernel(heads=2, enable_gqa=True),
        "grouped heads, mask": backward_kernel(heads=2, enable_gqa=True, mask=whole),
        "mask on a Hopper card": backward_kernel("h200_141gb", mask=whole),
        "learned mask on a Hopper card": backward_kernel("h200_141gb", mask=whole.clone().requires_grad_()),
        "turned mask on a Hopper card": backward_kernel("h200_141gb", mask=turned),
        "mask in 32 bit on a Hopper card": backward_kernel("h200_141gb", torch.float32, mask=whole.float()),
        "wide heads": backward_kernel(width=264),
        "unaligned heads": backward_kernel(type=torch.float32, width=6),
    }


def recomputed(phantom: Any) -> Any:
    """Return how many matrix products a backward pass runs, and how many of them activation checkpointing recomputes.

    The result has a list of these two numbers for each kind of checkpointing.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    layer = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)).cuda()
    given = torch.empty(4, 8, device="cuda", requires_grad=True)

    def products(forward: Callable[[], Any]) -> list[int]:
        loss = forward().sum()
        start = phantom.operation_count()
        loss.backward()
        layer(given)
        end = phantom.operation_count()
        counts = [phantom.operations(start, end, recomputed=recomputed) for recomputed in (False, True)]
        return [sum(count for key, count in found.items() if "mm" in key) for found in counts]

    return {
        "no checkpointing": products(lambda: layer(given)),
        "reentrant": products(lambda: checkpoint(layer, given, use_reentrant=True)),
        "not reentrant": products(lambda: checkpoint(layer, given, use_reentrant=False)),
    }


def waits(phantom: Any) -> Any:
    """Return for each operation of a short program whether the host waits for it."""
    import torch

    from experiments.prediction.times.operations import parse

    given = torch.empty(4, device="cuda")
    start = phantom.operation_count()
    given.cpu()
    given.to("cpu", non_blocking=True)
    torch.empty(4).cuda()
    torch.empty(0, device="cuda").cpu()
    given.sum().item()
    torch.cuda.synchronize()
    operations = map(parse, phantom.keys(start, phantom.operation_count())[0])
    return [[operation.name.partition(".")[0], operation.host_waits] for operation in operations]


PROBES = (
    sizes, split_and_merged, replayed, resized, workspaces, host, values, shapes, kept_for_backward, attention,
    recomputed, waits, *attention_probes.PROBES, *kernel_probes.PROBES, *stream_probes.PROBES,
)  # fmt: skip


def answer(probe: Callable[[Any], Any], phantom: Any) -> Any:
    """Run the probe in a fork, and return its result."""
    reader, writer = os.pipe()
    if (process := os.fork()) == 0:
        with os.fdopen(writer, "w") as out:
            json.dump(probe(phantom), out)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        found = pipe.read()
    os.waitpid(process, 0)
    return json.loads(found) if found else None


def main(cache: Path) -> None:
    from experiments.prediction.phantom.library import load
    from experiments.suites.attention_kernels import KernelProperties

    phantom = load(cache)
    phantom.install(
        KernelProperties(
            flash=True,
            memory_efficient=True,
            memory_efficient_bfloat16=True,
            cudnn_width=256,
            workspace_bytes=0,
            multiprocessors=132,
            attention_generation=80,
        )
    )

    from experiments.prediction.phantom.cuda import replace_cuda
    from experiments.suites.cards import card_named

    replace_cuda(phantom, card_named("h200_141gb"))

    import torch._dynamo  # noqa: F401 - PyTorch imports it in most probes, which takes a second

    gc.freeze()  # some probes collect garbage often
    print(json.dumps({probe.__name__: answer(probe, phantom) for probe in PROBES}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
