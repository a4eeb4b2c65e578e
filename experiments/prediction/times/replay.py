"""Measure logged operations: the seconds that the GPU needs to execute one, and the host to start it."""

import importlib
import math
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from experiments.prediction.times.operations import ATTENTION, PACKED_ATTENTION, Operation, tensor_bytes
from experiments.prediction.times.table import OperationTime

TYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
MAX_LIST_BYTES = 2**30
"""Limit of the bytes in the tensor lists of an operation. Longer lists are shortened, and the time is scaled up."""
AHEAD_CYCLES = 3_000_000
"""Clock cycles for which the GPU is occupied, so that the host has started all runs before the first one executes."""
VECTOR_ELEMENTS = 64
"""Length of which the lengths of long tensors in a list are multiples."""
WARM_UP_RUNS, MEASURED_S, MAX_REPEATS = 2, 0.004, 20


class NotReplayable(Exception):
    """The operation cannot be run alone, for example because it belongs to another device."""


def measure(operation: Operation) -> OperationTime:
    """Run the operation on random values on the current GPU and return its times.

    Raises NotReplayable if it cannot be run.
    """
    run, share = _build_call(operation)
    try:
        for _ in range(WARM_UP_RUNS):
            run()
        torch.cuda.synchronize()
        once_s = _time_runs(run, 1)[0]
        repeats = max(1, min(MAX_REPEATS, math.ceil(MEASURED_S / max(once_s, 1e-6))))
        device_s, host_s = _time_runs(run, repeats)
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as error:
        raise NotReplayable(f"{operation.name}: {error}") from error
    return OperationTime(device_s / share, host_s)


def _build_call(operation: Operation) -> tuple[Callable[[], Any], float]:
    """Return a function that runs the operation, and the share of the elements of tensor lists that it reads."""
    if operation.name.startswith("bitsandbytes::") and any(tensor.get("host") for tensor in operation.tensors):
        raise NotReplayable(f"{operation.name}: paged memory cannot be allocated for a single operation")
    if PACKED_ATTENTION.match(operation.name):
        raise NotReplayable(f"{operation.name}: its time depends on the lengths of the texts, which are not logged")
    if ATTENTION.match(operation.name) and "backward" in operation.name:
        return _attention_backward(operation), 1.0
    function, (args, kwargs, share) = _find_function(operation), _build_arguments(operation)
    return lambda: function(*args, **kwargs), share


def _attention_backward(operation: Operation) -> Callable[[], Any]:
    """Run the forward pass of an attention; return its backward pass, which reads tensors of the forward pass."""
    gradient, query, key, value, *rest = (_build_value(argument, {}) for argument in operation.arguments[:5])
    flash = "flash" in operation.name
    bias = None if flash or not isinstance(rest[0], torch.Tensor) else rest[0]
    causal = operation.arguments[11]
    inputs = query.requires_grad_(), key.requires_grad_(), value.requires_grad_()
    backend = SDPBackend.FLASH_ATTENTION if flash else SDPBackend.EFFICIENT_ATTENTION
    with sdpa_kernel(backend):
        out = torch.nn.functional.scaled_dot_product_attention(*inputs, attn_mask=bias, is_causal=causal is True)
    return lambda: torch.autograd.grad(out, inputs, gradient, retain_graph=True)


def _time_runs(run: Any, repeats: int) -> tuple[float, float]:
    """Return the average seconds of one run on the device, and on the host, which does not wait for the device."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(AHEAD_CYCLES)
    begin.record()
    started_s = time.perf_counter()
    for _ in range(repeats):
        run()
    host_s = time.perf_counter() - started_s
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000 / repeats, host_s / repeats


def _find_function(operation: Operation) -> Any:
    namespace, _, rest = operation.name.partition("::")
    if namespace == "bitsandbytes" and find_spec(namespace):
        importlib.import_module(namespace)
    packet, _, overload = rest.rpartition(".")
    try:
        return getattr(getattr(getattr(torch.ops, namespace), packet), overload)
    except AttributeError as error:
        raise NotReplayable(f"{operation.name}: not in this PyTorch") from error


def _build_arguments(operation: Operation) -> tuple[list[Any], dict[str, Any], float]:
    """Return positional and named arguments, and the share of the elements of the tensor lists that they contain."""
    schema = _find_function(operation)._schema.arguments
    list_bytes = sum(tensor_bytes(tensor) for tensor in operation.tensors if "tensors" in tensor)
    share = min(1.0, MAX_LIST_BYTES / list_bytes) if list_bytes else 1.0
    counts = {tensor["tensors"] for tensor in operation.tensors if "tensors" in tensor}
    lengths = {count: max(1, round(count * share)) for count in counts}
    share = lengths[min(counts)] / min(counts) if counts else 1.0
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for argument, value in zip(schema, operation.arguments, strict=False):
        argument_value = 1 if value is None and str(argument.type) == "number" else _build_value(value, lengths)
        if argument.kwarg_only:
            kwargs[argument.name] = argument_value
        else:
            args.append(argument_value)
    return args, kwargs, share


def _build_value(value: Any, lengths: dict[int, int]) -> Any:
    """Return an argument for a logged value. lengths: the shortened length of each list, by its logged length."""
    if isinstance(value, list):
        return [_build_value(one, lengths) for one in value]
    if not isinstance(value, dict):
        return value
    if "device" in value:
        return torch.device("cuda")
    if "dtype" in value:
        return TYPES[value["dtype"]]
    if "values" in value:
        count: int = value["values"]
        return [0.5] * lengths.get(count, count)
    if "tensors" in value:
        length = list_tensor_length(value["elements"], value["tensors"])
        return [_build_tensor([length], None, value) for _ in range(lengths[value["tensors"]])]
    if "scalar" in value:
        return 1 if value["type"] in ("Long", "Int", "Bool") else 0.5
    return _build_tensor(value["sizes"], value.get("strides"), value)


def list_tensor_length(elements: int, tensors: int) -> int:
    """Return the length of each tensor in a list of ``tensors`` equal tensors with about ``elements`` elements.

    Long tensors have a multiple of VECTOR_ELEMENTS, as almost all parameters of models do. Otherwise PyTorch's kernels
    for lists use their slower code, which loads one element at a time (aten/src/ATen/native/cuda/ForeachFunctors.cuh).
    """
    length = max(1, round(elements / tensors))
    return length if length < VECTOR_ELEMENTS else round(length / VECTOR_ELEMENTS) * VECTOR_ELEMENTS


def _build_tensor(sizes: list[int], strides: list[int] | None, value: dict[str, Any]) -> torch.Tensor:
    if value["type"] not in TYPES:
        raise NotReplayable(f"data type {value['type']}")
    dtype = TYPES[value["type"]]
    device = "cpu" if value.get("host") else "cuda"
    extents = zip(sizes, strides or (), strict=False)
    stored_elements = (
        1 + sum((size - 1) * stride for size, stride in extents) if strides and all(sizes) else math.prod(sizes)
    )
    tensor = torch.empty(stored_elements, dtype=dtype, device=device)
    if dtype.is_floating_point and device == "cuda":
        tensor.normal_()
    else:
        tensor.fill_(dtype == torch.bool)
    return tensor.view(sizes) if strides is None else tensor.as_strided(sizes, strides)
