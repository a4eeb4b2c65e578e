"""Download files of published models and data sets into the cache of the Hugging Face hub, or use a local folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import constants, scan_cache_dir, snapshot_download
from huggingface_hub.errors import CacheNotFound

from experiments.errors import InputError
from experiments.training.failures import first_line
from experiments.training.transformers_compat import checksum_mismatches

TOKENIZER_FILES = (
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "spiece.model"),
    *("config.json", "generation_config.json"),
)
CONFIGURATION_FILES = ("config.json", "generation_config.json")
WEIGHT_PATTERNS = ("model*.safetensors*", "pytorch_model*.bin*")


@dataclass(frozen=True)
class VersionedFolder:
    """A folder with the files of a model or data set. ``commit``: their version on the hub; None for a local folder."""

    folder: Path
    commit: str | None = None


def fetch_files(
    repository: str, patterns: Sequence[str] | None, description: str, kind: str = "model", **options: Any
) -> VersionedFolder:
    """Download the files of a repository that match ``patterns`` (None: all); return their folder.

    If ``repository`` is a local folder, nothing is copied, and that folder is returned. ``kind`` is the type of the
    repository: 'model' or 'dataset'. ``options`` are passed to snapshot_download. Raises InputError if the files
    cannot be downloaded; ``description`` is their name in the message.
    """
    if not repository:
        raise InputError(f"{description} of this model: no published version is known; allowed: a model of models.yaml")
    if Path(repository).is_dir():
        return VersionedFolder(Path(repository))
    try:
        allow_patterns = list(patterns) if patterns is not None else None
        folder = Path(snapshot_download(repository, repo_type=kind, allow_patterns=allow_patterns, **options))
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise InputError(f"{description} of {repository!r} cannot be loaded ({first_line(error)})") from None
    return VersionedFolder(folder, commit=folder.name)


def fetch_weights(repository: str, **options: Any) -> VersionedFolder:
    """Download a model's configuration and weights: the safetensors files, or pytorch_model*.bin if there are none.

    Returns their folder. Raises InputError if the download fails.
    """
    try:
        for pattern in WEIGHT_PATTERNS:
            source = fetch_files(repository, (*CONFIGURATION_FILES, pattern), "the weights", **options)
            if source.commit is None or any(source.folder.glob(pattern)):
                break
    except InputError as problem:
        raise InputError(f"{problem}; weights=random needs no download") from None
    return source


def cached_commit(repository: str, kind: str = "model") -> str | None:
    """Return the commit of the main branch that the cache has of a repository; None if the cache has none."""
    try:
        repos = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return None
    revisions = [
        revision
        for repo in repos
        if (repo.repo_id, repo.repo_type) == (repository, kind)
        for revision in repo.revisions
    ]
    return next((revision.commit_hash for revision in revisions if "main" in revision.refs), None)


def verify_checksums(
    source: VersionedFolder, repository: str, description: str, kind: str = "model"
) -> VersionedFolder:
    """Compare the files of ``source`` with the hub's checksums, download differing files again, and return ``source``.

    Raises InputError if a file still does not match.
    """
    if paths := _find_mismatches(source, repository, description, kind):
        fetch_files(repository, paths, description, kind, revision=source.commit, force_download=True)
        if paths := _find_mismatches(source, repository, description, kind):
            raise InputError(
                f"{description} of {repository!r}: after two downloads, the checksum of {paths[0]} differs from"
                " that on the Hugging Face hub"
            )
    return source


def _find_mismatches(source: VersionedFolder, repository: str, description: str, kind: str) -> list[str]:
    try:
        return checksum_mismatches(repository, kind, source.commit)
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise InputError(
            f"{description} of {repository!r} cannot be verified against the Hugging Face hub ({first_line(error)})"
        ) from None
