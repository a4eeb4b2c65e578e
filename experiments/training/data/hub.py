"""Files of published models and data sets: of the hub, fetched once into its cache, or of a folder as it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import constants, scan_cache_dir, snapshot_download
from huggingface_hub.errors import CacheNotFound

from experiments.errors import InputError
from experiments.training.failures import first_line
from experiments.training.transformers_compat import differing_from_hub

TOKENIZER = (
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "spiece.model"),
    *("config.json", "generation_config.json"),
)
CONFIGURATION = ("config.json", "generation_config.json")
WEIGHTS = ("model*.safetensors*", "pytorch_model*.bin*")


@dataclass(frozen=True)
class Published:
    """Files of a model or a data set in a folder; commit: their version on the hub, None for a folder of one's own."""

    folder: Path
    commit: str | None = None


def fetch(hub: str, patterns: Sequence[str] | None, what: str, kind: str = "model", **options: Any) -> Published:
    """The files that match ``patterns`` (None: all); ``hub`` is the name there of a model, or ``kind``, or a folder.

    ``what`` names them in the InputError that is raised when they cannot be had; options are of snapshot_download.
    """
    if not hub:
        raise InputError(f"{what} of this model: not known to be published; allowed: a model of models.yaml")
    if Path(hub).is_dir():
        return Published(Path(hub))
    try:
        wanted = list(patterns) if patterns is not None else None
        folder = Path(snapshot_download(hub, repo_type=kind, allow_patterns=wanted, **options))
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise InputError(f"{what} of {hub!r} cannot be loaded ({first_line(error)})") from None
    return Published(folder, commit=folder.name)


def fetch_weights(hub: str, **options: Any) -> Published:
    """A model's configuration and its weights: as safetensors where it has them, else as PyTorch saves them."""
    try:
        for pattern in WEIGHTS:
            found = fetch(hub, (*CONFIGURATION, pattern), "the weights", **options)
            if found.commit is None or any(found.folder.glob(pattern)):
                break
    except InputError as problem:
        raise InputError(f"{problem}; weights=random needs no download") from None
    return found


def version_kept(hub: str, kind: str = "model") -> str | None:
    """The commit that the cache has for the main branch; None where it has none."""
    try:
        repos = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return None
    versions = [one for repo in repos if (repo.repo_id, repo.repo_type) == (hub, kind) for one in repo.revisions]
    return next((version.commit_hash for version in versions if "main" in version.refs), None)


def checked(found: Published, hub: str, what: str, kind: str = "model") -> Published:
    """``found``, its files compared with the checksums that the hub states; spoiled ones are fetched once more.

    Raises InputError when one is spoiled again.
    """
    if spoiled := _spoiled(found, hub, what, kind):
        fetch(hub, spoiled, what, kind, revision=found.commit, force_download=True)
        if spoiled := _spoiled(found, hub, what, kind):
            raise InputError(f"{what} of {hub!r}: {spoiled[0]} has another checksum than the hub states, fetched twice")
    return found


def _spoiled(found: Published, hub: str, what: str, kind: str) -> list[str]:
    try:
        return differing_from_hub(hub, kind, found.commit)
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise InputError(f"{what} of {hub!r} cannot be compared with the hub ({first_line(error)})") from None
