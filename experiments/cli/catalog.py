"""`testbed cards | models`: the GPU models and language models of the catalog."""

from typing import TYPE_CHECKING, Any

from experiments.cli.output import console, print_json, say
from experiments.cli.parsing.group import Commands
from experiments.cli.parsing.options import Json

if TYPE_CHECKING:
    from experiments.system.tables import Table

app = Commands()
NUMBERS = ("memory", "usable", "parameters")
PROSE = ("GPU", "kind")
KINDS = {
    "blip2-opt": "captions images, decoder OPT",
    "blip2-t5": "captions images, decoder T5",
    "llama": "generates text",
    "gpt-neo": "generates text",
    "transformers": "any config.json",
}


@app.command("cards")
def cards_command(as_json: Json = False) -> None:
    """List the GPU models that predictions and labs know."""
    found = cards_as_data()
    if as_json:
        print_json(found)
        return
    table = _table("card", "GPU", "memory", "usable", "compute", "16-bit types")
    for card in found:
        sizes = (f"{card['memory_gib']:.2f}", f"{card['usable_gib']:.2f}")
        table.add(card["card"], card["name"], *sizes, card["compute_capability"], " ".join(card["types_16_bit"]))
    console().print(table)
    say("Memory in GiB; usable: what one process can allocate. compute: compute capability.")


@app.command("models")
def models_command(as_json: Json = False) -> None:
    """List the language models that rows and --model know."""
    found = models_as_data()
    if as_json:
        print_json(found)
        return
    table = _table("model", "parameters", "family", "kind")
    for model in found:
        size = f"{model['parameters'] / 1e9:.2f} B" if model["parameters"] else ""
        table.add(model["model"], size, model["family"], model["kind"])
    console().print(table)
    say("--model also takes the path of a config.json, or a name on the hub (org/name).")


def _table(*heads: str) -> "Table":
    """Return a table without rows; numbers are aligned to the right, names of GPUs and kinds wrapped."""
    from experiments.system.tables import Column, Table

    return Table(*(Column(head, number=head in NUMBERS, prose=head in PROSE) for head in heads))


def cards_as_data() -> list[dict[str, Any]]:
    """Return the cards, smallest memory first. Sizes in GiB (bytes / 1024**3), rates in TFLOP/s and GB/s."""
    from experiments.suites.cards import cards

    return [
        {
            "card": name,
            "name": card.name,
            "memory_gib": card.memory_gib,
            "usable_gib": round(card.usable_gib, 2),
            "compute_capability": card.compute_capability,
            "types_16_bit": [kind for kind in ("bf16", "fp16") if kind in card.peak_tflops],
            "peak_tflops": card.peak_tflops,
            "bandwidth_gb_s": card.bandwidth_gb_s,
        }
        for name, card in sorted(cards().items(), key=lambda item: item[1].memory_gib)
    ]


def models_as_data() -> list[dict[str, Any]]:
    """Return the models by name. parameters: counted, shared tensors once; None if the catalog does not say."""
    from experiments.suites.models import models

    return [
        {
            "model": name,
            "family": model.family,
            "kind": KINDS[model.family],
            "parameters": model.parameters or None,
            "hub": model.hub or None,
        }
        for name, model in models().items()
    ]
