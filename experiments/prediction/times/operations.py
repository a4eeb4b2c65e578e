"""Parse the operations that the phantom device logs, and compute their floating-point operations and bytes."""

import functools
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Family = Literal[
    "matrix products",
    "attention",
    "element-wise",
    "reductions",
    "indexing",
    "optimizer",
    "copies",
    "quantization",
    "host transfers",
    "communication",
    "CPU optimizer",
    "views",
    "checkpoints",
    "modules",
    "micro-steps",
    "waiting",
]
FAMILIES_WITHOUT_KERNEL: frozenset[Family] = frozenset(
    {"communication", "CPU optimizer", "views", "checkpoints", "modules", "micro-steps", "waiting"}
)
"""Families whose operations are in no table, because they run no kernel that computes."""

ELEMENT_BYTES = {
    "Double": 8,
    "Long": 8,
    "Float": 4,
    "Int": 4,
    "BFloat16": 2,
    "Half": 2,
    "Short": 2,
    "Bool": 1,
    "Byte": 1,
    "Char": 1,
}
PRODUCTS = re.compile(r"^aten::(addmm|mm|bmm|baddbmm|addmv|_addmm_activation|convolution|convolution_backward)_?\.")
SIMPLE_PRODUCTS = re.compile(r"^aten::(addmm|mm|bmm|baddbmm)$")
PACKED_ATTENTION = re.compile(r"^aten::_flash_attention")
ATTENTION = re.compile(rf"^aten::_scaled_dot_product|{PACKED_ATTENTION.pattern}")
REDUCTIONS = re.compile(
    r"^aten::(sum|mean|native_layer_norm|_softmax|_log_softmax|softmax|amax|any|all|norm|linalg_vector_norm|_fused_rms_norm|argmax|max|cumsum|nll_loss)"
)
INDEXING = re.compile(r"^aten::(embedding|index|gather|scatter|masked|nonzero|_index|sort|topk)")
OPTIMIZER = re.compile(r"^aten::_foreach|^aten::_fused_adam|^aten::_amp|^bitsandbytes::optimizer")
OUTPUT_OVERLOAD = re.compile(r"out$|^(output|grad_input|values|dim_max|dim_min|U)$")
"""Overloads of operations whose last arguments are their outputs."""
OUTPUT_COUNTS = {"aten::nll_loss_forward.output": 2, "aten::topk.values": 2, "aten::sort.values": 2}
"""Numbers of outputs among the arguments, if not 1."""
COMMUNICATION, CPU_ADAM, WAIT = "communication::", "host::adam", "host::wait"
VIEWS, CHECKPOINT, MODULES, MICRO_STEP = "host::views", "host::checkpoint", "host::modules", "host::micro_step"
FAMILIES_OF_HOST_WORK: Mapping[str, Family] = {
    WAIT: "waiting",
    CPU_ADAM: "CPU optimizer",
    VIEWS: "views",
    CHECKPOINT: "checkpoints",
    MODULES: "modules",
    MICRO_STEP: "micro-steps",
}
HOST_READS = re.compile(r"^aten::(_local_scalar_dense|nonzero|masked_select|equal|_?unique\w*|bincount)\b")
"""Operations whose result, or its size, the host reads from the GPU before it goes on."""
INDEXING_BY_MASK = re.compile(r"^aten::_?index(_put_impl_|_put_?)?\.")
"""Indexing. If a mask selects the elements, the host waits, because it reads their number."""


@dataclass(frozen=True)
class Operation:
    """A logged operation. arguments: tensors are mappings with type, sizes and strides; other values are unchanged.

    Properties that estimates use many times are computed once.
    """

    name: str
    arguments: tuple[Any, ...]

    @functools.cached_property
    def tensors(self) -> tuple[dict[str, Any], ...]:
        """Return the tensors in the arguments and in their lists; a long list of tensors is a single mapping."""
        return tuple(_tensors(self.arguments))

    @functools.cached_property
    def copies_between_host_and_gpu(self) -> bool:
        """Return whether the operation copies between host and GPU."""
        sides = {bool(tensor.get("host")) for tensor in self.tensors}
        return self.name.startswith("aten::copy_") and len(sides) == 2

    @property
    def host_reads(self) -> bool:
        """Return whether the host reads values from the GPU, or their number, and waits for them."""
        if self.copies_between_host_and_gpu:
            return "host" in self.tensors[0] and self.arguments[2] is False
        if INDEXING_BY_MASK.match(self.name):
            return any(tensor["type"] == "Bool" for tensor in _tensors(self.arguments[1]))
        return HOST_READS.match(self.name) is not None

    @property
    def host_waits(self) -> bool:
        """Return whether the host waits until the GPU has executed the operation, and all earlier ones.

        PyTorch waits after each copy between host and GPU that is not asynchronous (the last argument), also after one
        to the GPU (aten/src/ATen/native/cuda/Copy.cu).
        """
        if self.copies_between_host_and_gpu:
            return self.arguments[2] is False
        return self.name == WAIT or self.host_reads

    @property
    def reduces(self) -> bool:
        """Return whether a collective operation adds up values of all ranks."""
        return "reduce" in self.name

    @property
    def moves_shards(self) -> bool:
        """Return whether a collective operation gathers or scatters what is distributed over the ranks."""
        return "gather" in self.name or "scatter" in self.name

    @property
    def kernel_choices(self) -> int:
        """Return for how many products cuBLAS or cuDNN choose a kernel if the operation has new sizes.

        Both libraries store their choice for each size (NVIDIA, cuBLAS documentation, heuristics cache). The backward
        pass of a convolution has a product for the gradient of the input, and one for that of the weights.
        """
        if not PRODUCTS.match(self.name):
            return 0
        return sum(self.arguments[-1][:2]) if "convolution_backward" in self.name else 1

    @functools.cached_property
    def family(self) -> Family:
        if self.name in FAMILIES_OF_HOST_WORK:
            return FAMILIES_OF_HOST_WORK[self.name]
        if self.copies_between_host_and_gpu:
            return "host transfers"
        if self.name.startswith(COMMUNICATION):
            return "communication"
        if self.name.startswith("bitsandbytes::") and "optimizer" not in self.name:
            return "quantization"
        for pattern, family in FAMILIES:
            if pattern.match(self.name):
                return family
        return "copies" if self.name.startswith(("aten::copy_", "aten::cat", "aten::clone")) else "element-wise"

    @functools.cached_property
    def data_type(self) -> str:
        """Return the data type of the largest tensor, in bitsandbytes of the first one; '' without tensors."""
        if self.name.startswith("bitsandbytes::"):
            return str(self.tensors[0]["type"])
        largest = max(self.tensors, key=tensor_bytes, default=None)
        return str(largest["type"]) if largest else ""

    @property
    def elements(self) -> int:
        """Return the number of elements of the first tensor."""
        return _elements(self.tensors[0])

    @functools.cached_property
    def total_bytes(self) -> int:
        """Return the bytes of all tensors in the arguments, each read or written once, and of a separate result."""
        return sum(map(tensor_bytes, self.tensors)) + self._result_bytes

    @property
    def _result_bytes(self) -> int:
        """Return the bytes of a result that is not an argument; 0 if the arguments do not determine its size."""
        base, _, overload = self.name.partition(".")
        if OUTPUT_OVERLOAD.search(overload) or base.endswith("_"):
            return 0
        if self.family == "element-wise" and base.startswith("aten::"):
            return max(map(tensor_bytes, self.tensors), default=0)
        if base == "bitsandbytes::dequantize_4bit":
            *_, sizes, data_type = self.arguments
            return math.prod(sizes) * ELEMENT_BYTES[data_type["dtype"]]
        if SIMPLE_PRODUCTS.match(base):
            left, right = self._factors
            return math.prod(left[:-1]) * right[-1] * ELEMENT_BYTES.get(self.data_type, 1)
        return 0

    @property
    def _factors(self) -> tuple[list[int], list[int]]:
        """Return the sizes of the two matrices, or batches of matrices, that a product multiplies."""
        matrices = [tensor["sizes"] for tensor in self.tensors if len(tensor.get("sizes", ())) >= 2]
        *_, left, right = matrices[:-1] if self.name.endswith("out") else matrices
        return left, right

    @functools.cached_property
    def layout(self) -> str:
        """Return what determines the speed of a memory-bound operation besides the sizes.

        For each tensor: its data type, whether it is contiguous, strided or broadcast, and whether it is the largest
        one or a scalar.
        """
        largest = max(map(_elements, self.tensors), default=0)
        return " ".join(
            f"{tensor['type']}-{_order(tensor)}{'-largest' if _elements(tensor) == largest else ''}"
            f"{'-scalar' if _elements(tensor) <= 1 else ''}"
            for tensor in self.tensors
        )

    @functools.cached_property
    def product_sizes(self) -> tuple[int, int, int, int] | None:
        """Return rows, columns and depth of a matrix product, and the number of products; None for other operations."""
        if not PRODUCTS.match(self.name) or "convolution" in self.name or self.name.startswith("aten::addmv"):
            return None
        left, right = self._factors
        return left[-2], right[-1], left[-1], left[0] if len(left) == 3 else 1

    @functools.cached_property
    def flop(self) -> float:
        """Return the floating-point operations of matrix products and attention; 0 for all others."""
        if ATTENTION.match(self.name):
            return _attention_flop(self)
        if self.name.startswith("bitsandbytes::gemm_4bit"):
            return 2.0 * self.elements * float(self.arguments[2][0])
        if not PRODUCTS.match(self.name):
            return 0.0
        if "convolution" in self.name:
            return _convolution_flop(self)
        if self.name.startswith("aten::addmv"):
            return 2.0 * math.prod(next(tensor["sizes"] for tensor in self.tensors if len(tensor["sizes"]) >= 2))
        left, right = self._factors
        return 2.0 * math.prod(left) * right[-1]


FAMILIES: tuple[tuple[re.Pattern[str], Family], ...] = (
    (PRODUCTS, "matrix products"),
    (ATTENTION, "attention"),
    (OPTIMIZER, "optimizer"),
    (REDUCTIONS, "reductions"),
    (INDEXING, "indexing"),
)


@functools.lru_cache(maxsize=100_000)
def parse(key: str) -> Operation:
    """Return the operation of a key that the phantom device logged."""
    name, *arguments = json.loads(key)
    return Operation(name, tuple(arguments))


def tensor_bytes(tensor: dict[str, Any]) -> int:
    """Return the bytes of a tensor, or of a long list of tensors."""
    return _elements(tensor) * ELEMENT_BYTES.get(tensor["type"], 1)


def _elements(tensor: dict[str, Any]) -> int:
    return int(tensor["elements"]) if "elements" in tensor else math.prod(tensor["sizes"])


def _order(tensor: dict[str, Any]) -> str:
    strides = tensor.get("strides")
    return "contiguous" if strides is None else "broadcast" if 0 in strides else "strided"


def _tensors(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict) and "type" in value:
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)


def _attention_flop(operation: Operation) -> float:
    """Return 4 b h q k d for the forward pass (two products), 10 b h q k d for the backward pass (five products).

    Texts of different lengths (tokens x heads x size) count with their mean length, because lengths are not logged.
    """
    backward = "backward" in operation.name
    query, key = [tensor["sizes"] for tensor in operation.tensors][backward : 2 + backward]
    if PACKED_ATTENTION.match(operation.name):
        texts = next(tensor["sizes"][0] - 1 for tensor in operation.tensors if tensor["type"] == "Int")
        length = key[0] / texts
    else:
        length = key[2]
    return (10.0 if backward else 4.0) * math.prod(query) * length


def _convolution_flop(operation: Operation) -> float:
    """Return 2 x outputs x inputs of each output for the forward pass, and twice that for the backward pass."""
    sizes = [tensor["sizes"] for tensor in operation.tensors if len(tensor["sizes"]) > 2]
    if "backward" in operation.name:
        gradient, _, weight = sizes[:3]
        return 4.0 * math.prod(gradient) * math.prod(weight[1:])
    input_sizes, weight, stride = sizes[0], sizes[1], operation.arguments[3]
    return 2.0 * math.prod(input_sizes) / input_sizes[1] / math.prod(stride) * math.prod(weight)


@functools.lru_cache(maxsize=100_000)
def canonical_key(key: str) -> str:
    """Return the key of the computation: without the tensors that it writes, and without values that do not matter.

    A copy takes the same time whether or not the host waits for it. Some builds of PyTorch log a product as
    ``mm.default``, others as ``mm.out`` with its output as the last argument. Numbers that are not integers become 0.5.
    """
    name, *arguments = json.loads(key)
    base, _, overload = name.partition(".")
    if OUTPUT_OVERLOAD.search(overload):
        arguments = arguments[: -OUTPUT_COUNTS.get(name, 1)]
    if base == "aten::copy_":
        arguments[2] = False
    return json.dumps(_without_fractions([base.rstrip("_"), *arguments]), separators=(",", ":"))


def _without_fractions(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_fractions(one) for one in value]
    if isinstance(value, dict):
        return {name: _without_fractions(one) for name, one in value.items()}
    return 0.5 if isinstance(value, float) else value
