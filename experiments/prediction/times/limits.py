"""The shortest time of an operation that a card's arithmetic, memory bandwidth and kernel start allow."""

import itertools
import math

from experiments.prediction.times.operations import Operation
from experiments.suites.cards import Card

PRECISION_BY_TYPE = {"BFloat16": "bf16", "Half": "fp16", "Float": "fp32"}
KERNEL_START_S = 2.5e-6
"""Seconds to start and end a kernel, on every card. This value has the smallest error in a cross-validation on the
table of the H100 (benchmark estimated_operations)."""
HALF_WIDTH_CAPABILITIES = ("6.0", "7.0", "7.5", "8.0")
"""Compute capabilities whose multiprocessors have 64 units for 32-bit arithmetic instead of 128 (NVIDIA, CUDA C++
Programming Guide, throughput of arithmetic instructions)."""
FULL_WIDTH_SHARE = 0.821
"""Share of the peak rate that products of 32-bit matrices reach with 128 units: the highest one in the table of the
H100. A multiprocessor starts one instruction of 32 threads for each 32 units and cycle. With 128 units, arithmetic
at the peak rate leaves no cycle for loads and addresses. With 64 units, it leaves half of the cycles."""
TILES = {(128, 128): 1.0, (128, 64): 0.9, (64, 64): 0.85, (32, 32): 0.3}
"""Tiles of the result that a block of cuBLAS's kernels for 32-bit products computes, each with its share of the largest
tile's rate. The shares and SPLIT_COST have the smallest error in a cross-validation on the table of the H100."""
SPLITS, MIN_DEPTH, SPLIT_COST = (1, 2, 3, 4, 6, 8), 256, 0.03
"""Numbers of parts into which a kernel divides the depth of a product, the smallest depth of a part, and the cost of
adding up a further part, as a share of the product."""


def attainable_s(operation: Operation, card: Card) -> float:
    """Return the seconds that a good kernel needs: its start, plus the longer of its arithmetic and its memory access.

    Kernels for matrix products in 32 bit do not use matrix units. They are slower if the card's multiprocessors have
    128 units for 32-bit arithmetic, and if the last tiles of the result do not occupy all multiprocessors.
    """
    arithmetic_s = operation.flop / peak_rate(operation, card)
    sizes = operation.product_sizes
    if sizes is not None and operation.flop and _precision(operation) == "fp32":
        share = 1.0 if card.compute_capability in HALF_WIDTH_CAPABILITIES else FULL_WIDTH_SHARE
        arithmetic_s *= tile_waste(sizes, card) / share
    return KERNEL_START_S + max(arithmetic_s, memory_access_s(operation, card))


def tile_waste(sizes: tuple[int, int, int, int], card: Card) -> float:
    """Return how much arithmetic whole waves of tiles on all multiprocessors need, relative to the product itself.

    sizes: rows, columns, depth, number of products. The tile and the division of the depth are those with the least
    waste.
    """
    rows, columns, depth, products = sizes
    elements, wastes = rows * columns * products, []
    for (shape, rate), parts in itertools.product(TILES.items(), SPLITS):
        if parts > 1 and depth / parts < MIN_DEPTH:
            continue
        for height, width in (shape, shape[::-1]):
            blocks = math.ceil(rows / height) * math.ceil(columns / width) * products * parts
            waves = math.ceil(blocks / card.multiprocessors)
            computed = waves * card.multiprocessors * height * width / parts
            wastes.append(computed / elements / rate * (1 + SPLIT_COST * (parts - 1)))
    return min(wastes)


def _precision(operation: Operation) -> str:
    return PRECISION_BY_TYPE.get(operation.data_type, "fp32")


def peak_rate(operation: Operation, card: Card) -> float:
    """Return the peak rate of the operation's data type, in floating-point operations per second."""
    return 1e12 * (card.peak_tflops.get(_precision(operation)) or card.peak_tflops["fp32"])


def memory_access_s(operation: Operation, card: Card) -> float:
    """Return the seconds in which the card's memory transfers the operation's tensors."""
    return operation.total_bytes / (card.bandwidth_gb_s * 1e9)
