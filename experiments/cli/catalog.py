"""`testbed cards | models`: the GPU models and language models of the catalog."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from experiments.cli.output import console, print_json, say
from experiments.cli.parsing.group import Commands
from experiments.cli.parsing.options import Json

if TYPE_CHECKING:
    from experiments.system.tables import Table

app = Commands()
NamePart = Annotated[
    str, typer.Argument(metavar="NAME", help="Only cards whose name contains this text, such as a100.")
]
NUMBER_COLUMNS = ("memory", "usable", "parameters")
WRAPPED_COLUMNS = ("GPU", "kind")
OPTIONAL_COLUMNS = {"GPU": 1}
"""Columns that a narrow terminal omits, with the order in which they are omitted: the highest number first."""
KIND_OF_FAMILY = {
    "blip2-opt": "captions images, decoder OPT",
    "blip2-t5": "captions images, decoder T5",
    "llama": "generates text",
    "gpt-neo": "generates text",
    "transformers": "any config.json",
}


@app.command("cards")
def cards_command(part: NamePart = "", as_json: Json = False) -> None:
    """List the GPU models that predictions and labs know.

    For a GPU that is not listed, give --card the size of its memory, such as 24GiB.
    """
    cards = cards_as_data(part)
    if as_json:
        print_json(cards)
        return
    table = _table("card", "GPU", "memory", "usable", "compute", "16-bit types", "PyTorch for")
    for card in cards:
        sizes = (f"{card['memory_gib']:.2f}{'*' if card['memory_is_assumed'] else ' '}", f"{card['usable_gib']:.2f}")
        types = " ".join(card["types_16_bit"]) or "none"
        table.add(card["card"], card["name"], *sizes, card["compute_capability"], types, card["pytorch_build"])
    console().print(table)
    say("\n".join(_legend()))


@app.command("models")
def models_command(as_json: Json = False) -> None:
    """List the language models that rows and --model know."""
    models = models_as_data()
    if as_json:
        print_json(models)
        return
    table = _table("model", "parameters", "family", "kind")
    for model in models:
        size = f"{model['parameters'] / 1e9:.2f} B" if model["parameters"] else ""
        table.add(model["model"], size, model["family"], model["kind"])
    console().print(table)
    say("--model also takes the path of a config.json or of its folder, or an id on the Hugging Face hub (org/name).")


def _legend() -> list[str]:
    from experiments.suites.cards import IMAGE_CUDA, REFERENCE_CARD

    return [
        "Memory in GiB; usable: what one process can allocate; *: assumed, not reported by PyTorch. compute: compute "
        "capability; 16-bit types that are not listed run slowly or not at all.",
        f"PyTorch for: the PyTorch build that the card needs; none: the card is too old for PyTorch 2.11 and newer. "
        f"The project's image has PyTorch for CUDA {IMAGE_CUDA}.",
        "--card also takes a memory size, such as 24GiB. Kernels and data types are then assumed to be those of "
        f"{REFERENCE_CARD}.",
    ]


def _table(*heads: str) -> "Table":
    """Return an empty table with these column headings. Numbers are right-aligned; only GPU names and kinds wrap."""
    from experiments.system.tables import Column, Table

    return Table(
        *(
            Column(
                head,
                number=head in NUMBER_COLUMNS,
                prose=head in WRAPPED_COLUMNS,
                optional=OPTIONAL_COLUMNS.get(head, 0),
            )
            for head in heads
        )
    )


def cards_as_data(part: str = "") -> list[dict[str, Any]]:
    """Return the cards whose name contains the text ``part``, smallest memory first.

    Sizes in GiB (bytes / 1024**3), rates in TFLOP/s and GB/s. Raises InputError if no card matches.
    """
    from experiments.errors import unknown_name_error
    from experiments.suites.cards import cards

    known = cards()
    matching = {name: card for name, card in known.items() if part.lower() in f"{name} {card.name}".lower()}
    if not matching:
        raise unknown_name_error("card", part, known)
    return [
        {
            "card": name,
            "name": card.name,
            "memory_gib": card.memory_gib,
            "usable_gib": round(card.usable_gib, 2),
            "memory_is_assumed": card.memory_is_assumed,
            "compute_capability": card.compute_capability,
            "types_16_bit": card.types_16_bit,
            "pytorch_build": card.pytorch_build,
            "peak_tflops": card.peak_tflops,
            "bandwidth_gb_s": card.bandwidth_gb_s,
        }
        for name, card in sorted(matching.items(), key=lambda item: item[1].memory_gib)
    ]


def models_as_data() -> list[dict[str, Any]]:
    """Return the models of the catalog. parameters: number of parameters, shared ones counted once; None: unknown."""
    from experiments.suites.models import models

    return [
        {
            "model": name,
            "family": model.family,
            "kind": KIND_OF_FAMILY[model.family],
            "parameters": model.parameters or None,
            "hub": model.hub or None,
        }
        for name, model in models().items()
    ]
