"""The roofline: the shortest possible time of an operation on a card."""

from experiments.prediction.times.limits import memory_access_s, peak_rate
from experiments.prediction.times.operations import Operation
from experiments.suites.cards import Card

MIN_KERNEL_S = 2e-6
"""Shortest time of a kernel, seconds."""


def bound_s(operation: Operation, card: Card) -> float:
    """Return the shortest possible seconds of an operation: limited by arithmetic, bandwidth or kernel launch."""
    return max(operation.flop / peak_rate(operation, card), memory_access_s(operation, card), MIN_KERNEL_S)
