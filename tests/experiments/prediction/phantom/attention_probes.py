"""Probes of the temporary memory of PyTorch's own attention kernels."""

import gc
from collections.abc import Callable
from typing import Any, NamedTuple


class Case(NamedTuple):
    """An attention of texts of equal length. Sizes: batch, heads, heads of the keys, lengths of both, width.

    in_order: tensors are contiguous in the order of the kernels, batch x length x heads x width; otherwise heads are
    before lengths. gradient_in_order: the same of the gradient of the output.
    """

    sizes: tuple[int, int, int, int, int, int]
    card: str = "h200_141gb"
    dtype: str = "bfloat16"
    in_order: bool = True
    gradient_in_order: bool = True
    dropout: float = 0.0
    deterministic: bool = False
    value_width: int | None = None


A100, A30, RTX3090, RTX4090, RTX5090 = "a100_80gb", "a30_24gb", "rtx3090_24gb", "rtx4090_24gb", "rtx5090_32gb"
SHORT, WIDE = (1, 12, 12, 1024, 1024, 64), (2, 16, 16, 512, 512, 192)
EIGHT, GROUPED = (1, 8, 8, 1024, 1024, 64), (1, 32, 8, 300, 300, 128)
FLASH = {
    "short": Case(SHORT),
    "heads before lengths": Case(SHORT, in_order=False),
    "gradient in another order": Case(SHORT, gradient_in_order=False),
    "dropout": Case(SHORT, dropout=0.1),
    "long": Case((4, 24, 24, 4250, 4250, 128)),
    "grouped": Case((4, 32, 8, 2048, 2048, 128)),
    "grouped, short": Case(GROUPED),
    "grouped, heads before lengths": Case(GROUPED, in_order=False),
    "80 values": Case((2, 16, 16, 512, 512, 80)),
    "96 values": Case((2, 16, 16, 512, 512, 96)),
    "160 values": Case((2, 16, 16, 512, 512, 160)),
    "192 values": Case(WIDE),
    "256 values": Case((2, 16, 16, 512, 512, 256)),
    "17 tokens": Case((1, 4, 4, 17, 17, 64)),
    "more keys than queries": Case((16, 12, 12, 32, 1500, 64)),
    "one query": Case((1, 8, 8, 1, 4096, 128)),
    "one query, grouped": Case((1, 32, 8, 1, 4096, 128)),
    "one head": Case((1, 1, 1, 4096, 4096, 32)),
    "deterministic": Case((1, 2, 2, 1024, 1024, 128), deterministic=True),
    "short on an A100": Case(SHORT, A100),
    "eight heads on an A100": Case(EIGHT, A100),
    "many keys on an A100": Case((1, 8, 8, 1024, 4096, 64), A100),
    "eight heads on an A30": Case(EIGHT, A30),
    "eight heads on an RTX 4090": Case(EIGHT, RTX4090),
    "eight heads on an H100 slice": Case(EIGHT, "h100_1g_12gb"),
    "deterministic on an A100": Case(EIGHT, A100, deterministic=True),
    "MI210": Case(EIGHT, "mi210_64gb"),
    "MI210, 256 tokens": Case((1, 8, 8, 256, 256, 64), "mi210_64gb"),
}
EFFICIENT = {
    "16 bit": Case(SHORT),
    "32 bit": Case(SHORT, dtype="float32"),
    "gradient in another order": Case(SHORT, gradient_in_order=False),
    "128 values": Case((4, 32, 32, 2048, 2048, 128)),
    "128 values in 32 bit": Case((4, 32, 32, 1024, 1024, 128), dtype="float32"),
    "80 values": Case((2, 16, 16, 512, 512, 80)),
    "192 values": Case(WIDE),
    "192 values in 32 bit": Case(WIDE, dtype="float32"),
    "256 values": Case((2, 16, 16, 512, 512, 256)),
    "17 tokens": Case((1, 4, 4, 17, 17, 64)),
    "more queries than keys": Case((16, 12, 12, 1500, 32, 64)),
    "wider values": Case((2, 12, 12, 512, 512, 64), dtype="float32", value_width=128),
    "narrower values": Case((2, 12, 12, 512, 512, 64), value_width=32),
    "300 tokens on an A100": Case((1, 8, 8, 300, 300, 128), A100),
    "300 tokens on an RTX 3090": Case((1, 8, 8, 300, 300, 128), RTX3090),
    "80 values on an RTX 3090": Case((2, 16, 16, 512, 512, 80), RTX3090),
    "80 values and dropout on an RTX 3090": Case((2, 16, 16, 512, 512, 80), RTX3090, dropout=0.1),
    "80 values on an RTX 5090": Case((2, 16, 16, 512, 512, 80), RTX5090),
    "128 values in 32 bit on an RTX 3090": Case((1, 8, 8, 300, 300, 128), RTX3090, dtype="float32"),
    "many heads on an RTX 3090": Case((8, 32, 32, 128, 128, 128), RTX3090),
    "deterministic on an RTX 3090": Case((1, 8, 8, 300, 300, 128), RTX3090, deterministic=True),
    "128 values on a V100": Case((1, 8, 8, 300, 300, 128), "v100_32gb", "float16"),
    "192 values on a V100": Case((1, 8, 8, 300, 300, 192), "v100_32gb", "float16"),
    "192 values on a T4": Case((1, 8, 8, 300, 300, 192), "t4_16gb", "float16"),
    "128 values in 32 bit on a V100": Case((1, 8, 8, 300, 300, 128), "v100_32gb", "float32"),
    "128 values on a P100": Case((1, 8, 8, 300, 300, 128), "p100_16gb", "float16"),
    "32 bit on a P100": Case(SHORT, "p100_16gb", "float32"),
    "one head on a P100": Case((1, 1, 1, 300, 300, 64), "p100_16gb", "float32"),
    "MI210": Case(SHORT, "mi210_64gb", "float32"),
    "MI210, 256 tokens": Case((1, 8, 8, 256, 256, 64), "mi210_64gb", "float32"),
}


def temporary_sizes(phantom: Any, run: Callable[[], Any]) -> tuple[list[int], Any]:
    """Return the sizes that ``run`` allocates and frees, in the order of their allocation, and its results."""
    gc.collect()
    start = phantom.stats()[4]
    kept = run()
    sizes: dict[int, int] = {}
    end, last = phantom.stats()[4], set()
    for event in range(start, end):
        alive = phantom.live_allocations(event)
        sizes |= {one.allocated_at: one.size for one in alive if one.allocated_at >= start}
        last = {one.allocated_at for one in alive}
    return [size for place, size in sorted(sizes.items()) if place not in last], kept


def install(phantom: Any, card: str) -> None:
    from experiments.suites.attention_kernels import kernel_properties
    from experiments.suites.cards import card_named

    phantom.install(kernel_properties(card_named(card)))


def measure(phantom: Any, case: Case, backend: Any) -> list[list[int]]:
    """Return the temporary sizes of the forward and of the backward pass."""
    import torch
    from torch.nn.attention import sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    batch, heads, key_heads, length, key_length, width = case.sizes

    def make(heads: int, length: int, width: int) -> Any:
        sizes = (batch, length, heads, width) if case.in_order else (batch, heads, length, width)
        made = torch.empty(sizes, dtype=getattr(torch, case.dtype), device="cuda")
        return (made.transpose(1, 2) if case.in_order else made).requires_grad_()

    def forward() -> Any:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(*inputs, dropout_p=case.dropout, enable_gqa=key_heads < heads)

    install(phantom, case.card)
    torch.use_deterministic_algorithms(case.deterministic)
    value_width = case.value_width or width
    inputs = make(heads, length, width), make(key_heads, key_length, width), make(key_heads, key_length, value_width)
    forward_sizes, out = temporary_sizes(phantom, forward)
    gradient = torch.empty_like(out)
    if not case.gradient_in_order:
        gradient = gradient.contiguous()
    backward_sizes, _ = temporary_sizes(phantom, lambda: torch.autograd.grad(out, inputs, gradient))
    torch.use_deterministic_algorithms(False)
    return [forward_sizes, backward_sizes]


def flash_attention(phantom: Any) -> Any:
    from torch.nn.attention import SDPBackend

    return {name: measure(phantom, case, SDPBackend.FLASH_ATTENTION) for name, case in FLASH.items()}


def efficient_attention(phantom: Any) -> Any:
    from torch.nn.attention import SDPBackend

    return {name: measure(phantom, case, SDPBackend.EFFICIENT_ATTENTION) for name, case in EFFICIENT.items()}


def chosen_attention(phantom: Any) -> Any:
    """Return the temporary sizes if the program does not choose the kernel."""
    from torch.nn.attention import SDPBackend

    everything = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
    cases = {
        "H200": Case(SHORT),
        "H200, 192 values": Case(WIDE),
        "B200, 192 values": Case(WIDE, "b200_180gb"),
        "H200, deterministic": Case((1, 2, 2, 1024, 1024, 128), deterministic=True),
        "H200, values half as wide as keys": Case((1, 8, 8, 1024, 1024, 128), value_width=64),
        "A100": Case(SHORT, A100),
        "RTX 4090, 208 values": Case((1, 8, 8, 300, 300, 208), RTX4090),
        "RTX 4090, 256 values": Case((1, 8, 8, 300, 300, 256), RTX4090),
        "RTX 4090, 256 values, dropout": Case((1, 8, 8, 300, 300, 256), RTX4090, dropout=0.1),
    }
    return {name: measure(phantom, case, everything) for name, case in cases.items()}


def packed_attention(phantom: Any) -> Any:
    """Return the temporary sizes of flash attention of concatenated texts of 300 and 724 tokens, with grouped heads."""
    import torch

    install(phantom, A100)
    starts = torch.tensor([0, 300, 1024], dtype=torch.int32, device="cuda")

    def make(heads: int) -> Any:
        return torch.empty(1024, heads, 64, dtype=torch.bfloat16, device="cuda", requires_grad=True)

    inputs = make(8), make(2), make(2)

    def forward() -> Any:
        return torch.ops.aten._flash_attention_forward(*inputs, starts, starts, 724, 724, 0.0, True, False)[0]

    forward_sizes, out = temporary_sizes(phantom, forward)
    gradient = torch.empty(8, 1024, 64, dtype=torch.bfloat16, device="cuda").transpose(0, 1)
    return [forward_sizes, temporary_sizes(phantom, lambda: torch.autograd.grad(out, inputs, gradient))[0]]


def direct_efficient_attention(phantom: Any) -> Any:
    """Return the temporary sizes of memory-efficient attention that a program calls directly, by case."""
    cases = {**EFFICIENT, "empty batch": Case((0, 8, 8, 64, 64, 192))}
    return {
        name: _measure_direct(phantom, case)
        for name, case in cases.items()
        if case.in_order and case.gradient_in_order and not case.deterministic
    }


def _measure_direct(phantom: Any, case: Case) -> list[list[int]]:
    import torch

    batch, heads, key_heads, length, key_length, width = case.sizes
    install(phantom, case.card)

    def make(heads: int, length: int, width: int) -> Any:
        made = torch.empty(batch, length, heads, width, dtype=getattr(torch, case.dtype), device="cuda")
        return made.requires_grad_()

    values = make(key_heads, key_length, case.value_width or width)
    inputs = make(heads, length, width), make(key_heads, key_length, width), values

    def forward() -> Any:
        rest = (None, None, None, None, None, case.dropout, 0, True)
        return torch.ops.aten._efficient_attention_forward(*inputs, *rest, scale=0.5)[0]

    forward_sizes, out = temporary_sizes(phantom, forward)
    gradient = torch.empty_like(out)
    return [forward_sizes, temporary_sizes(phantom, lambda: torch.autograd.grad(out, inputs, gradient))[0]]


def packed_efficient_attention(phantom: Any) -> Any:
    """Return the temporary sizes of memory-efficient attention of concatenated texts of 300 and 724 tokens.

    The backward pass is also called with at most one part of the keys, and with a gradient in another order.
    """
    import torch

    install(phantom, A100)
    starts = torch.tensor([0, 300, 1024], dtype=torch.int32, device="cuda")
    inputs = [torch.empty(1, 1024, 8, 192, dtype=torch.bfloat16, device="cuda") for _ in range(3)]

    def forward() -> Any:
        return torch.ops.aten._efficient_attention_forward(*inputs, None, starts, starts, 724, 724, 0.0, 0, True)

    forward_sizes, (out, sums, seed, offset, *_) = temporary_sizes(phantom, forward)
    gradient = torch.empty(1, 8, 1024, 192, dtype=torch.bfloat16, device="cuda").transpose(1, 2)

    def backward(gradient: Any, **options: Any) -> Any:
        rest = (None, out, starts, starts, 724, 724, sums, 0.0, seed, offset, 0, False)
        return torch.ops.aten._efficient_attention_backward(gradient, *inputs, *rest, **options)

    return [
        forward_sizes,
        temporary_sizes(phantom, lambda: backward(out))[0],
        temporary_sizes(phantom, lambda: backward(gradient, num_splits_key=1, window_size=100))[0],
    ]


def unsupported_attention(phantom: Any) -> Any:
    """Return the error of an attention that the only allowed kernel does not support."""
    from torch.nn.attention import SDPBackend

    found = []
    backends = SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION
    for backend in (*backends, [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION]):
        try:
            measure(phantom, Case((1, 8, 2, 300, 300, 64), "v100_32gb", "float16"), backend)
        except RuntimeError as error:
            found.append(str(error).splitlines()[0])
    return found


PROBES = (
    *(flash_attention, efficient_attention, chosen_attention, packed_attention),
    *(direct_efficient_attention, packed_efficient_attention, unsupported_attention),
)
