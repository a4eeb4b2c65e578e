"""GPU models: memory that a process can allocate, and peak rates."""

import re
from functools import cache

from pydantic import Field, PositiveFloat

from experiments.errors import unknown
from experiments.suites.yaml_schema import CATALOG, StrictModel, checked, read_yaml

CARDS_FILE = CATALOG / "cards.yaml"
SAME_SIZE = 0.02
"""Devices of one model differ by less than this share of their memory, by driver and board."""


class Card(StrictModel):
    """One GPU model. Memory in GiB (bytes / 1024**3), peak rates in TFLOP/s without sparsity, bandwidth in GB/s."""

    name: str = Field(description="the card's name in reports")
    matches: str = Field(description="regular expression that the driver's device name matches")
    memory_gib: PositiveFloat = Field(description="the device's total memory, as PyTorch reports it")
    context_gib: float = Field(ge=0, description="memory of a process's CUDA context, before the first tensor")
    peak_tflops: dict[str, PositiveFloat] = Field(
        description="by data type: fp32, tf32, bf16, fp16, those that the card has in hardware"
    )
    bandwidth_gb_s: PositiveFloat = Field(description="peak rate of the device's memory")
    compute_capability: str = Field(description="NVIDIA's version of the card's instruction set, such as 8.0")
    sources: dict[str, str] = Field(description="source of each number")

    @property
    def usable_gib(self) -> float:
        """Return what the caching allocator of one process can reserve, GiB."""
        return self.memory_gib - self.context_gib

    def fits_into(self, total_gib: float) -> bool:
        """Return whether a device of ``total_gib`` has the card's memory."""
        return total_gib >= (1 - SAME_SIZE) * self.memory_gib

    def has_size(self, total_gib: float) -> bool:
        """Return whether a device of ``total_gib`` has the memory of the card and no more."""
        return abs(total_gib - self.memory_gib) <= SAME_SIZE * self.memory_gib


@cache
def cards() -> dict[str, Card]:
    """Return every card of catalog/cards.yaml by name."""
    return {
        name: checked(Card, facts, f"{CARDS_FILE.name}: card {name!r}") for name, facts in read_yaml(CARDS_FILE).items()
    }


def card_named(name: str, where: str = "") -> Card:
    """Return the card of that name. Raises InputError with the known cards."""
    try:
        return cards()[name]
    except KeyError:
        raise unknown("card", name, cards(), where) from None


def cards_named(text: str) -> list[str]:
    """Return the cards of a comma-separated list, or every card for 'all'. Raises InputError for an unknown one."""
    if text == "all":
        return list(cards())
    names = [name.strip() for name in text.split(",")]
    for name in names:
        card_named(name, "--card")
    return list(dict.fromkeys(names))


def card_of_device(device_name: str) -> str | None:
    """Return the card of a driver's device name; None for a device that cards.yaml does not have."""
    return next((name for name, card in cards().items() if re.search(card.matches, device_name)), None)


def same_chip(a: str | None, b: str | None) -> bool:
    """Return whether two different cards have one chip, as their peak rates tell; their memory may differ."""
    if a == b or a not in cards() or b not in cards():
        return False
    return len({(tuple(card.peak_tflops.items()), card.compute_capability) for card in (cards()[a], cards()[b])}) == 1
