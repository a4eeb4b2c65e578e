"""GPU models: memory that a process can allocate, peak rates, and which builds of PyTorch run on them."""

import re
from collections.abc import Iterable
from functools import cache
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from experiments.errors import InputError, unknown
from experiments.suites.yaml_schema import CATALOG, StrictModel, checked, read_yaml

CARDS_FILE = CATALOG / "cards.yaml"
SAME_SIZE = 0.02
"""Devices of one model differ by less than this share of their memory, by driver and board."""
SAME_NAME = 0.1
"""A device with the card's name is another one, such as a part of it, if its memory differs by more than this share."""
SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(GiB|GB)", re.IGNORECASE)
BYTES = {"gib": 1024**3, "gb": 10**9}
LARGEST_GIB = 1024
LIKE = "a100_80gb"
"""A card that is only a size is assumed to have the kernels and data types of this one."""
SIZES = "or a size such as 24GiB"
IMAGE_CUDA = "13.0"
"""CUDA version of the PyTorch in the course's image; a test compares it with containers/Dockerfile."""
OLDEST = {"CUDA 13": 7.5, "CUDA 12.6": 5.0}
"""Lowest compute capability of PyTorch's builds, 2.11 to 2.13 (pytorch/pytorch RELEASE.md, #175253, #187075)."""

Build = Literal["CUDA 13", "CUDA 12.6", "ROCm", "none"]


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
    multiprocessors: PositiveInt = Field(description="multiprocessors, or AMD's compute units, of one device")
    sources: dict[str, str] = Field(description="source of each number")

    @property
    def usable_gib(self) -> float:
        """Return what the caching allocator of one process can reserve, GiB."""
        return self.memory_gib - self.context_gib

    @property
    def memory_is_assumed(self) -> bool:
        """Return whether no report of PyTorch or CUDA states the memory."""
        return self.sources["memory"].startswith("assumed")

    @property
    def build(self) -> Build:
        """Return the newest build of PyTorch 2.11 to 2.13 that has kernels for the card; none: it is too old."""
        if self.compute_capability.startswith("gfx"):
            return "ROCm"
        version = float(self.compute_capability)
        if version >= OLDEST["CUDA 13"]:
            return "CUDA 13"
        return "CUDA 12.6" if version >= OLDEST["CUDA 12.6"] else "none"

    @property
    def types_16_bit(self) -> list[str]:
        """Return the data types of 16 bits that the card has in hardware."""
        return [kind for kind in ("bf16", "fp16") if kind in self.peak_tflops]

    def fits_into(self, total_gib: float) -> bool:
        """Return whether a device of ``total_gib`` has the card's memory."""
        return total_gib >= (1 - SAME_SIZE) * self.memory_gib

    def has_size(self, total_gib: float) -> bool:
        """Return whether a device of ``total_gib`` has the memory of the card and no more."""
        return abs(total_gib - self.memory_gib) <= SAME_SIZE * self.memory_gib

    def is_device(self, device_name: str, total_gib: float | None) -> bool:
        """Return whether a device of this name and memory is the card; memory None or 0: unknown."""
        near = not total_gib or abs(total_gib - self.memory_gib) <= SAME_NAME * self.memory_gib
        return near and re.search(self.matches, device_name) is not None


@cache
def cards() -> dict[str, Card]:
    """Return every card of catalog/cards.yaml by name."""
    return {
        name: checked(Card, facts, f"{CARDS_FILE.name}: card {name!r}") for name, facts in read_yaml(CARDS_FILE).items()
    }


def card_named(name: str, where: str = "") -> Card:
    """Return the card of that name, or a card that is only a size. Raises InputError with the known cards."""
    if found := cards().get(name) or _of_size(name, where):
        return found
    raise unknown("card", name, cards(), where)


def _of_size(text: str, where: str) -> Card | None:
    """Return a card of ``24GiB`` or ``24GB``; None for another text. Raises InputError for a size that no card has."""
    if not (size := SIZE.fullmatch(text)):
        return None
    like = cards()[LIKE]
    memory_gib = float(size[1]) * BYTES[size[2].lower()] / BYTES["gib"]
    if not 2 * like.context_gib < memory_gib <= LARGEST_GIB:
        place = f"{where} " if where else ""
        raise InputError(f"{place}{text}: allowed: more than {2 * like.context_gib:g} and at most {LARGEST_GIB} GiB")
    sources = dict.fromkeys(like.sources, f"assumed, as {LIKE}") | {"memory": f"assumed, {text}"}
    return like.model_copy(
        update={"name": f"GPU of {memory_gib:.2f} GiB", "matches": "(?!)", "memory_gib": memory_gib, "sources": sources}
    )


def card_to_predict(name: str, where: str) -> Card:
    """Return the card as ``card_named`` does. Raises InputError for one that is too old for PyTorch."""
    if name not in cards() and not SIZE.fullmatch(name):
        raise unknown("card", name, [*cards(), SIZES], where)
    card = card_named(name, where)
    if card.build == "none":
        raise InputError(
            f"{where} {name}: too old for PyTorch: compute capability {card.compute_capability}; "
            f"PyTorch 2.11 to 2.13 needs {OLDEST['CUDA 12.6']} or newer"
        )
    return card


def cards_named(text: str) -> list[str]:
    """Return the cards of a comma-separated list, or for 'all' every card that PyTorch runs on.

    A card may be a size, such as 24GiB. Raises InputError for an unknown one, and for one that is too old.
    """
    if text == "all":
        return [name for name, card in cards().items() if card.build != "none"]
    names = [name.strip() for name in text.split(",")]
    for name in names:
        card_to_predict(name, "--card")
    return list(dict.fromkeys(names))


def card_of_device(device_name: str, memory_gib: float | None = None) -> str | None:
    """Return the card of a driver's device name and its total memory; None for a device that cards.yaml does not have.

    Boards that share a name are told apart by memory; without it (None or 0) the first card of that name is returned.
    """
    found = [name for name, card in cards().items() if card.is_device(device_name, memory_gib)]
    return min(found, key=lambda name: abs(cards()[name].memory_gib - memory_gib) if memory_gib else 0, default=None)


def notes_on(names: Iterable[str]) -> list[str]:
    """Return what a reader has to know of these cards, each in one line."""
    notes: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        notes.setdefault(_note(name, card_named(name)), []).append(name)
    return [f"{', '.join(of)}: {note}" for note, of in notes.items() if note]


def _note(name: str, card: Card) -> str:
    if name not in cards():
        return f"{card.memory_gib:.2f} GiB; kernels and data types are assumed, as of {LIKE}"
    if card.build == "CUDA 12.6":
        return f"too old for the course's image, PyTorch for CUDA {IMAGE_CUDA}; only PyTorch for CUDA 12.6 runs on it"
    return "only PyTorch for ROCm runs on it; the course's image is for NVIDIA" if card.build == "ROCm" else ""


def same_chip(a: str | None, b: str | None) -> bool:
    """Return whether two different cards have one chip, as their peak rates tell; their memory may differ."""
    if a == b or a not in cards() or b not in cards():
        return False
    return len({(tuple(card.peak_tflops.items()), card.compute_capability) for card in (cards()[a], cards()[b])}) == 1
