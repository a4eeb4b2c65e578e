"""GPU models: the memory that a process can allocate, peak rates, and the builds of PyTorch that run on them."""

import re
from collections.abc import Iterable
from functools import cache
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from experiments.errors import InputError, unknown_name_error
from experiments.suites.yaml_schema import CATALOG, StrictModel, read_yaml, validate

CARDS_FILE = CATALOG / "cards.yaml"
MEMORY_TOLERANCE_SHARE = 0.02
"""Drivers and boards change the memory of a GPU model by less than this share."""
NAMED_CARD_TOLERANCE_SHARE = 0.1
"""A device with the card's name is another card, such as a MIG slice, if its memory differs by more than this share."""
MEMORY_SIZE_PATTERN = re.compile(r"(\d+(?:\.\d+)?) ?(GiB|GB)", re.IGNORECASE)
BYTES_PER_UNIT = {"gib": 1024**3, "gb": 10**9}
MAX_CARD_GIB = 1024
REFERENCE_CARD = "a100_80gb"
"""A card that is given only as a size is assumed to have the kernels and data types of this card."""
MEMORY_SIZE_HELP = "or a size such as 24GiB"
EVERY_CARD = "all"
SMALLEST_CARD = "smallest"
"""Word in a list of cards: find only the smallest card that fits, among the other cards of the list, or all cards."""
IMAGE_CUDA = "13.0"
"""CUDA version of PyTorch in the project's container image. A test compares it with containers/Dockerfile."""
MIN_CAPABILITY = {"CUDA 13": 7.5, "CUDA 12.6": 5.0}
"""Lowest compute capability of each build of PyTorch 2.11 to 2.13 (pytorch/pytorch RELEASE.md, #175253, #187075)."""

PytorchBuild = Literal["CUDA 13", "CUDA 12.6", "ROCm", "none"]


class Card(StrictModel):
    """One GPU model. Memory in GiB (bytes / 1024**3), peak rates in TFLOP/s without sparsity, bandwidth in GB/s."""

    name: str = Field(description="the card's name in reports")
    matches: str = Field(description="regular expression that the driver's device name matches")
    memory_gib: PositiveFloat = Field(description="the device's total memory, as PyTorch reports it")
    context_gib: float = Field(ge=0, description="memory of a process's CUDA context, before the first tensor")
    peak_tflops: dict[str, PositiveFloat] = Field(
        description="peak rate by data type (fp32, tf32, bf16, fp16), for those that the card has in hardware"
    )
    bandwidth_gb_s: PositiveFloat = Field(description="peak rate of the device's memory")
    link_gb_s: PositiveFloat | None = Field(
        default=None, description="peak rate of the links to the host's other GPUs in one direction; None: PCIe"
    )
    compute_capability: str = Field(description="NVIDIA's version of the card's instruction set, such as 8.0")
    multiprocessors: PositiveInt = Field(description="multiprocessors, or AMD's compute units, of one device")
    sources: dict[str, str] = Field(description="source of each value")

    @property
    def usable_gib(self) -> float:
        """Return the memory that the caching allocator of one process can reserve, GiB."""
        return self.memory_gib - self.context_gib

    @property
    def memory_is_assumed(self) -> bool:
        """Return whether the memory size is assumed, because no output of PyTorch or CUDA states it."""
        return self.sources["memory"].startswith("assumed")

    @property
    def pytorch_build(self) -> PytorchBuild:
        """Return the newest build of PyTorch 2.11 to 2.13 with kernels for the card; 'none': the card is too old."""
        if self.compute_capability.startswith("gfx"):
            return "ROCm"
        version = float(self.compute_capability)
        if version >= MIN_CAPABILITY["CUDA 13"]:
            return "CUDA 13"
        return "CUDA 12.6" if version >= MIN_CAPABILITY["CUDA 12.6"] else "none"

    @property
    def types_16_bit(self) -> list[str]:
        """Return the 16-bit data types that the card has in hardware."""
        return [kind for kind in ("bf16", "fp16") if kind in self.peak_tflops]

    def computes_in_software(self, precision: str) -> bool:
        """Return whether PyTorch computes ``precision`` in software, because the card has no bfloat16 arithmetic."""
        return precision.startswith("bf16") and "bf16" not in self.peak_tflops

    def device_is_large_enough(self, total_gib: float) -> bool:
        """Return whether a device of ``total_gib`` has at least the card's memory."""
        return total_gib >= (1 - MEMORY_TOLERANCE_SHARE) * self.memory_gib

    def device_has_same_memory(self, total_gib: float) -> bool:
        """Return whether a device of ``total_gib`` has the card's memory, neither more nor less."""
        return abs(total_gib - self.memory_gib) <= MEMORY_TOLERANCE_SHARE * self.memory_gib

    def matches_device(self, device_name: str, total_gib: float | None) -> bool:
        """Return whether a device of this name and memory is this card. ``total_gib`` None or 0: unknown."""
        has_memory_of_name = (
            not total_gib or abs(total_gib - self.memory_gib) <= NAMED_CARD_TOLERANCE_SHARE * self.memory_gib
        )
        return has_memory_of_name and re.search(self.matches, device_name) is not None


@cache
def cards() -> dict[str, Card]:
    """Return every card of catalog/cards.yaml by name."""
    return {
        name: validate(Card, facts, f"{CARDS_FILE.name}: card {name!r}")
        for name, facts in read_yaml(CARDS_FILE).items()
    }


def card_named(name: str, where: str = "") -> Card:
    """Return the card of that name. For a size such as 24GiB, return a card of that size.

    where: the option or file with the name, for the error message. Raises InputError, which lists the known cards, for
    any other text.
    """
    if found := cards().get(name) or _card_from_size(name, where):
        return found
    raise unknown_name_error("card", name, cards(), where)


def _card_from_size(text: str, where: str) -> Card | None:
    """Return a card with the memory that ``text`` states, such as ``24GiB`` or ``24GB``; None if it is not a size.

    Raises InputError for a size outside of the allowed range.
    """
    if not (size := MEMORY_SIZE_PATTERN.fullmatch(text)):
        return None
    reference = cards()[REFERENCE_CARD]
    memory_gib = float(size[1]) * BYTES_PER_UNIT[size[2].lower()] / BYTES_PER_UNIT["gib"]
    if not 2 * reference.context_gib < memory_gib <= MAX_CARD_GIB:
        place = f"{where} " if where else ""
        raise InputError(
            f"{place}{text}: allowed: more than {2 * reference.context_gib:g} and at most {MAX_CARD_GIB} GiB"
        )
    sources = dict.fromkeys(reference.sources, f"assumed, as {REFERENCE_CARD}") | {"memory": f"assumed, {text}"}
    return reference.model_copy(
        update={"name": f"GPU of {memory_gib:.2f} GiB", "matches": "(?!)", "memory_gib": memory_gib, "sources": sources}
    )


def supported_card(name: str, where: str) -> Card:
    """Return the card of that name (see ``card_named``). Raises InputError also if the card is too old for PyTorch."""
    if name not in cards() and not MEMORY_SIZE_PATTERN.fullmatch(name):
        raise unknown_name_error("card", name, [*cards(), MEMORY_SIZE_HELP], where)
    card = card_named(name, where)
    if card.pytorch_build == "none":
        raise InputError(
            f"{where} {name}: too old for PyTorch: compute capability {card.compute_capability}; "
            f"PyTorch 2.11 to 2.13 needs {MIN_CAPABILITY['CUDA 12.6']} or newer"
        )
    return card


def parse_card_list(text: str) -> list[str]:
    """Return the names in a comma-separated list of cards; the word 'all' stands for every card that PyTorch runs on.

    A name may be a size, such as 24GiB. Raises InputError for an unknown card, for a card that is too old, and for the
    word 'smallest'.
    """
    words = [word.strip() for word in text.split(",")]
    if SMALLEST_CARD in words:
        raise InputError(
            f"--card {text}: '{SMALLEST_CARD}' is allowed in testbed predict, for a script or for --model; allowed "
            f"here: {', '.join(cards())}, {MEMORY_SIZE_HELP}, or {EVERY_CARD}"
        )
    for word in words:
        if word != EVERY_CARD:
            supported_card(word, "--card")
    supported = [name for name, card in cards().items() if card.pytorch_build != "none"]
    return list(dict.fromkeys(name for word in words for name in (supported if word == EVERY_CARD else [word])))


def parse_cards_or_smallest(text: str) -> tuple[list[str], bool]:
    """Return the cards in a comma-separated list, and whether the list contains the word 'smallest'.

    If the list has no other word, every card is returned. Raises the errors of ``parse_card_list``.
    """
    words = [word.strip() for word in text.split(",")]
    others = ",".join(word for word in words if word != SMALLEST_CARD)
    return parse_card_list(others or EVERY_CARD), SMALLEST_CARD in words


def card_of_device(device_name: str, memory_gib: float | None = None) -> str | None:
    """Return the name of the card that a driver's device name and total memory match; None if no card matches.

    Memory distinguishes boards that share a name. Without it (None or 0), the first card of that name is returned.
    """
    found = [name for name, card in cards().items() if card.matches_device(device_name, memory_gib)]
    return min(found, key=lambda name: abs(cards()[name].memory_gib - memory_gib) if memory_gib else 0, default=None)


def card_notes(names: Iterable[str]) -> list[str]:
    """Return notes about assumed data and required builds of PyTorch, one line per note with its cards."""
    notes: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        notes.setdefault(_card_note(name, card_named(name)), []).append(name)
    return [f"{', '.join(cards_with_note)}: {note}" for note, cards_with_note in notes.items() if note]


def software_bf16_notes(names: Iterable[str]) -> list[str]:
    """Return one note about these cards, which compute bfloat16 in software; [] without ``names``."""
    emulating = list(dict.fromkeys(names))
    verb = "has" if len(emulating) == 1 else "have"
    note = f"{', '.join(emulating)} {verb} no bf16 arithmetic. PyTorch emulates it slowly; the memory is as predicted"
    return [note] if emulating else []


def _card_note(name: str, card: Card) -> str:
    if name not in cards():
        return f"{card.memory_gib:.2f} GiB; kernels and data types are assumed to be those of {REFERENCE_CARD}"
    if card.pytorch_build == "CUDA 12.6":
        return (
            f"too old for the project's container image, which has PyTorch for CUDA {IMAGE_CUDA}; "
            "use PyTorch for CUDA 12.6"
        )
    return (
        "use PyTorch for ROCm; the project's container image is for NVIDIA GPUs" if card.pytorch_build == "ROCm" else ""
    )


def card_warnings(name: str | None, bf16: bool = True) -> list[str]:
    """Return the reasons why rows fail or are slow on a card of the catalog. bf16: whether rows compute in bfloat16."""
    card = cards().get(name or "")
    if card is None:
        return []
    old = [f"{card.name}: {note}"] if (note := _card_note(str(name), card)) else []
    capability = f"compute capability {card.compute_capability}, needed: 8.0"
    slow = [f"{card.name} computes bfloat16 in software, which is slow ({capability})"]
    return old + (slow if bf16 and card.computes_in_software("bf16") else [])


def have_same_chip(first: str | None, second: str | None) -> bool:
    """Return whether two different cards have the same chip: equal peak rates and compute capability.

    Their memory may differ. Return False for names that are not in the catalog.
    """
    if first == second or first not in cards() or second not in cards():
        return False
    both = (cards()[first], cards()[second])
    return len({(tuple(card.peak_tflops.items()), card.compute_capability) for card in both}) == 1
