"""Probes of the memory that kernels allocate: what they keep for the backward pass, and temporary memory.

The answers to the cases are those of an H200 with PyTorch 2.11 and cuDNN 9.19, measured with the allocator's history.
"""

import functools
import gc
from collections.abc import Callable
from typing import Any

RECURRENT = {
    "LSTM": ("LSTM", (70, 64, 1024, 1024), 1, "float32", 0.0),
    "LSTM of 3 layers with dropout": ("LSTM", (70, 64, 1024, 1024), 3, "float32", 0.2),
    "LSTM of one step": ("LSTM", (1, 64, 1024, 1024), 1, "float32", 0.0),
    "LSTM in bfloat16": ("LSTM", (70, 64, 1024, 1024), 1, "bfloat16", 0.0),
    "GRU": ("GRU", (70, 64, 1024, 1024), 1, "float32", 0.0),
    "GRU of 2 layers with dropout": ("GRU", (35, 20, 200, 300), 2, "float32", 0.2),
    "RNN of 2 layers": ("RNN", (70, 64, 1024, 1024), 2, "float32", 0.0),
}
DEPTHWISE: dict[str, Any] = {"channels_last": True, "dtype": "bfloat16"}
CONVOLUTIONS: dict[str, tuple[int, int, int | tuple[int, int], int, dict[str, Any]]] = {
    "3 x 3": (8, 256, 60, 256, {"kernel_size": 3, "padding": 2, "dilation": 2}),
    "3 x 3, many channels": (8, 512, 60, 512, {"kernel_size": 3, "padding": 4, "dilation": 4}),
    "3 x 3, stride 2": (8, 128, 120, 128, {"kernel_size": 3, "padding": 1, "stride": 2}),
    "3 x 3, wide": (8, 2048, 60, 256, {"kernel_size": 3, "padding": 12, "dilation": 12}),
    "1 x 1": (8, 256, 60, 1024, {"kernel_size": 1}),
    "1 x 1, many channels": (8, 512, 60, 2048, {"kernel_size": 1}),
    "3 x 3, more blocks than multiprocessors": (8, 1024, 60, 256, {"kernel_size": 3, "padding": 1}),
    "3 x 3 in 16 bit": (16, 256, 32, 256, {"kernel_size": 3, "padding": 1, "dtype": "float16"}),
    "7 x 7, 3 channels": (8, 3, 480, 64, {"kernel_size": 7, "padding": 3, "stride": 2}),
    "1 x 1, stride 2": (4, 1024, (50, 68), 2048, {"kernel_size": 1, "stride": 2}),
    "1 x 1, batch of 4": (4, 512, (25, 34), 2048, {"kernel_size": 1}),
    "1 x 1, few channels": (4, 256, (200, 272), 12, {"kernel_size": 1}),
    "4 x 4, stride 2": (256, 128, 16, 256, {"kernel_size": 4, "padding": 1, "stride": 2}),
    "3 channels": (256, 3, 64, 64, {"kernel_size": 4, "padding": 1, "stride": 2}),
    "transposed": (256, 256, 8, 128, {"kernel_size": 4, "padding": 1, "stride": 2, "transposed": True}),
    "1 x 1 in 16 bit": (64, 512, 14, 1024, {"kernel_size": 1, "dtype": "bfloat16"}),
    "depthwise": (64, 96, 56, 96, {"kernel_size": 7, "padding": 3, "groups": 96, "dtype": "bfloat16"}),
    "depthwise, channels last": (16, 512, 14, 512, DEPTHWISE | {"kernel_size": 7, "padding": 3, "groups": 512}),
    "depthwise, 40 channels": (16, 40, 30, 40, DEPTHWISE | {"kernel_size": 3, "padding": 1, "groups": 40}),
    "depthwise, one sample": (1, 512, 14, 512, DEPTHWISE | {"kernel_size": 7, "padding": 3, "groups": 512}),
}


def scratch(phantom: Any, run: Callable[[], Any]) -> tuple[int, Any]:
    """Return the bytes that were allocated and free again when ``run`` has returned its results, and these."""
    phantom.reset_peaks()
    kept = run()
    allocated, _, peak, *_ = phantom.stats()
    return int(peak - allocated), kept


def recurrent(phantom: Any) -> Any:
    """Return the bytes that a layer keeps for the backward pass, and its temporary memory, in its second call."""
    import torch

    def measure(kind: str, sizes: tuple[int, ...], layers: int, dtype: str, dropout: float) -> list[int]:
        steps, batch, width, hidden = sizes
        layer = getattr(torch.nn, kind)(width, hidden, layers, dropout=dropout).to("cuda", getattr(torch, dtype))
        given = torch.empty(steps, batch, width, dtype=getattr(torch, dtype), device="cuda")
        layer(given)
        before = phantom.stats()[0]
        temporary, kept = scratch(phantom, lambda: layer(given))
        found = [phantom.stats()[0] - before, temporary]
        kept[0].sum().backward()
        return found

    return {name: measure(*case) for name, case in RECURRENT.items()}


def convolutions(phantom: Any) -> Any:
    """Return the temporary memory of the forward pass, and of the backward pass to the input and to the weights."""
    import torch

    def measure(
        batch: int, inputs: int, size: int | tuple[int, int], outputs: int, options: dict[str, Any]
    ) -> list[int]:
        transposed, dtype = options.pop("transposed", False), getattr(torch, options.pop("dtype", "float32"))
        order = torch.channels_last if options.pop("channels_last", False) else torch.contiguous_format
        layer = (torch.nn.ConvTranspose2d if transposed else torch.nn.Conv2d)(inputs, outputs, bias=False, **options)
        layer = layer.to("cuda", dtype)
        height, width = (size, size) if isinstance(size, int) else size
        given = torch.empty(batch, inputs, height, width, dtype=dtype, device="cuda", memory_format=order)
        forward, result = scratch(phantom, lambda: layer(given))
        settings = (layer.stride, layer.padding, layer.dilation, transposed, layer.output_padding, layer.groups)

        def backward(wanted: list[bool]) -> int:
            arguments = (torch.empty_like(result), given, layer.weight, None, *settings, wanted)
            return scratch(phantom, lambda: torch.ops.aten.convolution_backward(*arguments))[0]

        return [forward, backward([True, False, False]), backward([False, True, False])]

    return {name: measure(*case) for name, case in CONVOLUTIONS.items()}


def other_scratch(phantom: Any) -> Any:
    """Return the temporary memory of sums, and of backward passes of attention and of an embedding."""
    import torch
    from torch.nn import functional as F

    def attention(batch: int, heads: int, groups: int, length: int, width: int, masked: bool) -> int:
        def make(count: int) -> Any:
            return torch.empty(batch, count, length, width, dtype=torch.float16, device="cuda", requires_grad=True)

        mask = torch.empty(length, length, dtype=torch.float16, device="cuda") if masked else None
        inputs = make(heads), make(groups), make(groups)
        out = F.scaled_dot_product_attention(*inputs, mask, is_causal=not masked, enable_gqa=groups < heads)
        gradient = torch.empty_like(out)
        gc.collect()
        before = phantom.stats()[0]
        phantom.reset_peaks()
        grads = torch.autograd.grad(out, inputs, gradient)
        return int(phantom.stats()[2] - before - sum(one.nbytes for one in grads))

    def embedding(tokens: int, rows: int, width: int) -> int:
        positions = torch.zeros(1, tokens, dtype=torch.int64, device="cuda")
        gradient = torch.empty(1, tokens, width, device="cuda")
        arguments = (gradient, positions, rows, -1, False)
        return scratch(phantom, lambda: torch.ops.aten.embedding_dense_backward(*arguments))[0]

    def channel_sums(order: torch.memory_format) -> list[int]:
        values = torch.empty(16, 512, 14, 14, device="cuda", memory_format=order)
        weight = torch.empty(512, 1, 7, 7, device="cuda", memory_format=order)
        settings = ([512], [1, 1], [3, 3], [1, 1], False, [0, 0], 512, [False, False, True])
        bias_gradient = functools.partial(torch.ops.aten.convolution_backward, values, values, weight, *settings)
        return [scratch(phantom, run)[0] for run in (lambda: values.sum((0, 2, 3)), bias_gradient)]

    return {
        "sums of channels that are last": channel_sums(torch.channels_last),
        "sums of channels": channel_sums(torch.contiguous_format),
        "attention with a mask": attention(128, 8, 8, 77, 64, masked=True),
        "embedding of few tokens": embedding(2048, 151936, 896),
        "embedding": embedding(4096, 151936, 896),
        "embedding of many tokens": embedding(16384, 4096, 4096),
    }


def segments_of_equal_blocks(phantom: Any) -> Any:
    """Return whether a tensor is placed in the latest segment if free blocks are equal: of few segments, of many."""
    import torch

    def is_in_latest_segment(count: int) -> bool:
        blocks = [torch.empty(12 * 2**20, dtype=torch.uint8, device="cuda") for _ in range(count)]
        latest = blocks[-1].data_ptr()
        del blocks
        return torch.empty(11 * 2**20, dtype=torch.uint8, device="cuda").data_ptr() == latest

    return [is_in_latest_segment(2), is_in_latest_segment(40)]


def replayed_history_error(case: str, phantom: Any) -> float:
    """Return the error of reserved memory in a replay of a program's allocations on an H200."""
    from tests.benchmarks.prediction.foreign.histories import histories, replay

    line = next(one for one in histories() if one["case"] == case)
    return replay(phantom, line["events"])[1] / 2**30 / float(line["reserved_gib"]) - 1


def history_with_equal_blocks(phantom: Any) -> Any:
    return replayed_history_error("accelerate", phantom)


def history_with_large_first_segments(phantom: Any) -> Any:
    return replayed_history_error("trl-sft-packing", phantom)


def masks_of_ones(phantom: Any) -> Any:
    """Return whether all elements of a mask are true: of ones with ones appended, of ones with a zero appended, etc."""
    import torch

    def all_true(*padding: int) -> bool:
        before, mask = torch.ones(1, 4).to("cuda"), torch.tensor([[1, *padding]]).cuda()
        return bool(torch.cat((before, mask), dim=1).to(torch.bool).all())

    written = torch.ones(4).to("cuda")
    written[1:] = 0.0
    return [all_true(1, 1), all_true(1, 0), bool(written.to(torch.bool).all())]


def normalizations(phantom: Any) -> Any:
    """Return the temporary memory of normalizations in groups and by the root mean square, of inputs of 16 MiB."""
    import torch

    given, weight = torch.empty(16, 256, 32, 32, device="cuda"), torch.empty(1024, device="cuda")
    with torch.no_grad():
        groups = scratch(phantom, lambda: torch.nn.functional.group_norm(given, 32))[0]
        root = scratch(phantom, lambda: torch.nn.functional.rms_norm(given.view(-1, 1024), (1024,), weight))[0]
    return [groups, root]


def dropout_order(phantom: Any) -> Any:
    """Return the bytes that are reserved for dropout of 16 MiB if the cache has a block of 17 MiB."""
    import torch

    mib = 2**20
    given = torch.empty(4 * mib, device="cuda")
    cached = torch.empty(17 * mib, dtype=torch.uint8, device="cuda")
    del cached
    before = phantom.stats()[1]
    kept = torch.nn.functional.dropout(given.requires_grad_(), 0.1)
    reserved = phantom.stats()[1] - before
    del kept
    return reserved


def bias_workspace(phantom: Any) -> Any:
    """Return the bytes that stay allocated after the first and the second product with a bias, and after others."""
    import torch

    from experiments.suites.attention_kernels import kernel_properties
    from experiments.suites.cards import card_named

    phantom.install(kernel_properties(card_named("h200_141gb")))
    bias, left = torch.empty(4, device="cuda"), torch.empty(4, 4, device="cuda")
    left @ left
    before = phantom.stats()[0]
    found = []
    for run in (lambda: left @ left, lambda: torch.addmm(left, left, left), lambda: torch.addmm(bias, left, left)) * 2:
        run()
        found.append(phantom.stats()[0] - before)
    return found


def copied_inputs(phantom: Any) -> Any:
    """Return the temporary memory of operations with an input of 1 MiB in order, and with a transposed one."""
    import torch

    aten = torch.ops.aten
    rows, turned = torch.empty(512, 512, device="cuda"), torch.empty(512, 512, device="cuda").t()
    vector, mean = torch.empty(512, device="cuda"), torch.empty(512, 1, device="cuda")
    positions = torch.zeros(512, dtype=torch.int64, device="cuda")
    image, weight = torch.empty(1, 256, 32, 32, device="cuda"), torch.empty(256, 1, 1, 1, device="cuda")
    operations = {
        "layer norm": lambda given: aten.native_layer_norm(given, [512], vector, vector, 1e-5),
        "backward pass of layer norm": lambda given: aten.native_layer_norm_backward(
            given, rows, [512], mean, mean, vector, vector, [True, True, True]
        ),
        "softmax": lambda given: aten._softmax(given, -1, False),
        "backward pass of softmax": lambda given: aten._softmax_backward_data(given, rows, -1, torch.float32),
        "backward pass of an embedding": lambda given: aten.embedding_dense_backward(given, positions, 8, -1, False),
        "backward pass of a convolution": lambda given: aten.convolution_backward(
            given.t().view(1, 32, 32, 256).permute(0, 3, 1, 2) if given is turned else given.view(1, 256, 32, 32),
            *(image, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 256, [True, True, False]),
        ),
    }
    return {
        name: [scratch(phantom, functools.partial(run, one))[0] for one in (rows, turned)]
        for name, run in operations.items()
    }


def searched_convolution(phantom: Any) -> Any:
    """Return the cached bytes after each of two equal convolutions, with and without the search for the fastest."""
    import torch

    def convolve() -> int:
        torch.empty(32 * 2**20, dtype=torch.uint8, device="cuda")
        torch.nn.functional.conv2d(torch.empty(1, 3, 8, 8, device="cuda"), torch.empty(4, 3, 3, 3, device="cuda"))
        allocated, reserved, *_ = phantom.stats()
        return int(reserved >= allocated + 32 * 2**20)

    found = []
    for torch.backends.cudnn.benchmark in (False, True):
        found += [convolve(), convolve()]
    torch.backends.cudnn.benchmark = False
    return found


def memory_of_the_search(phantom: Any) -> Any:
    """Return the temporary memory of the gradients of a convolution's weights, with the search and after it."""
    import torch

    shapes = ((64, 256, 28, 28), (64, 512, 28, 28), (256, 512, 1, 1))
    gradient, given, weight = (torch.empty(shape, dtype=torch.bfloat16, device="cuda") for shape in shapes)
    settings = (None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False])
    torch.backends.cudnn.benchmark = True
    run = functools.partial(torch.ops.aten.convolution_backward, gradient, given, weight, *settings)
    return [scratch(phantom, run)[0] for _ in range(2)]


def convolution_without_memory(phantom: Any) -> Any:
    """Return whether a sum of many rows, and a convolution, complete with three quarters of their temporary memory."""
    import torch

    def completes(run: Callable[[], Any]) -> bool:
        phantom.empty_cache()
        temporary, _ = scratch(phantom, run)
        replay = phantom.replay(2**62)
        assert temporary > 2**20
        return phantom.replay(replay.peak_allocated - temporary // 4).failed_event is None

    given, weight = torch.empty(8, 256, 60, 60, device="cuda"), torch.empty(256, 256, 3, 3, device="cuda")
    rows = torch.empty(2**22, 64, device="cuda")
    return [completes(lambda: rows.sum(0)), completes(lambda: torch.nn.functional.conv2d(given, weight))]


def convolution_order(phantom: Any) -> Any:
    """Return whether the result of a convolution is channels last: of no operand, of the input, of the weight."""
    import torch

    def is_last(*orders: torch.memory_format) -> bool:
        given, weight = (torch.empty(4, 4, 3, 3, device="cuda").to(memory_format=order) for order in orders)
        return torch.nn.functional.conv2d(given, weight, padding=1).is_contiguous(memory_format=torch.channels_last)

    last, contiguous = torch.channels_last, torch.contiguous_format
    return [is_last(contiguous, contiguous), is_last(last, contiguous), is_last(contiguous, last)]


def cross_entropy(phantom: Any) -> Any:
    """Return the bytes that the loss of 512 tokens keeps, and the most that its backward pass allocates meanwhile."""
    import torch

    logits = torch.empty(512, 151_936, device="cuda", requires_grad=True)
    tokens = torch.zeros(512, dtype=torch.int64, device="cuda")
    before = phantom.stats()[0]
    forward_scratch, loss = scratch(phantom, lambda: torch.nn.functional.cross_entropy(logits, tokens))
    kept = phantom.stats()[0] - before
    phantom.reset_peaks()
    loss.backward()
    return {"scratch": forward_scratch, "kept": kept, "backward": phantom.stats()[2] - before - kept}


def adam_in_8_bits(phantom: Any) -> Any:
    """Return the bytes that stay allocated after each of two steps of 16 Mi weights, and their temporary memory."""
    import torch

    from experiments.prediction.phantom.fake_bitsandbytes import import_bitsandbytes

    import_bitsandbytes(phantom)
    import bitsandbytes

    weights = torch.empty(4096, 4096, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    weights.grad = torch.empty_like(weights)
    optimizer = bitsandbytes.optim.AdamW8bit([weights])
    before = phantom.stats()[0]
    found = []
    for _ in range(2):
        temporary, _ = scratch(phantom, optimizer.step)
        found.append([phantom.stats()[0] - before, temporary])
    return found


PROBES = (
    *(cross_entropy, adam_in_8_bits),
    *(bias_workspace, recurrent, convolutions, other_scratch, dropout_order),
    *(copied_inputs, searched_convolution, memory_of_the_search, convolution_without_memory, convolution_order),
    normalizations,
    *(segments_of_equal_blocks, history_with_equal_blocks, history_with_large_first_segments, masks_of_ones),
)
