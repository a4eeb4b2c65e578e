"""Files of a published model: of the hub, fetched once into its cache, or of a folder as it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download

from experiments.errors import InputError
from experiments.training.ending import first_line

TOKENIZER = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "config.json", "generation_config.json")


@dataclass(frozen=True)
class Published:
    """A folder with a model's files; commit names their version on the hub, None for a folder of one's own."""

    folder: Path
    commit: str | None = None


def fetch(hub: str, patterns: Sequence[str], what: str) -> Published:
    """The files of a model that match ``patterns``; ``hub`` is its name there, or a folder.

    ``what`` names them in the InputError that is raised when they cannot be had.
    """
    if not hub:
        raise InputError(f"{what} of this model: not known to be published; allowed: a model of models.yaml")
    if Path(hub).is_dir():
        return Published(Path(hub))
    try:
        folder = Path(snapshot_download(hub, allow_patterns=list(patterns)))
    except (OSError, ValueError) as error:
        raise InputError(f"{what} of {hub!r} cannot be loaded ({first_line(error)})") from None
    return Published(folder, commit=folder.name)
