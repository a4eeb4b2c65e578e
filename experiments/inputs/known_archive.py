"""The data archives that labs download: their URLs, and their checksums, which the first download records."""

from functools import cache
from pathlib import Path

from pydantic import Field

from experiments.inputs.download import DownloadCallback, download_without_checksum, is_url
from experiments.suites.yaml_schema import CATALOG, StrictModel, read_yaml, validate


class KnownArchive(StrictModel):
    """An archive that a lab downloads."""

    address: str = Field(pattern="^https://", description="URL of the archive")
    source: str = Field(description="where the lab states the URL")


@cache
def known_archives() -> dict[str, KnownArchive]:
    """Return every archive of catalog/archives.yaml by the name of its data set."""
    path = CATALOG / "archives.yaml"
    return {name: validate(KnownArchive, data, f"{path.name}: {name!r}") for name, data in read_yaml(path).items()}


def locate_archive(
    source: str, sha256: str | None, cache_folder: Path, on_progress: DownloadCallback
) -> tuple[str, str | None]:
    """Return the URL and the SHA-256 of the archive of the data set ``source``, if it is in catalog/archives.yaml.

    For any other ``source``, such as a folder, return ``source`` and ``sha256`` unchanged.

    Labs state no checksum. The first use downloads the archive and records its checksum in the cache. Later uses return
    the recorded checksum. If ``sha256`` is given, it is returned, and nothing is downloaded. Raises InputError if the
    download fails.
    """
    archive = None if is_url(source) else known_archives().get(source)
    if archive is None:
        return source, sha256
    if sha256:
        return archive.address, sha256
    record = cache_folder / "data" / f"{source}.sha256"
    if not record.exists():
        digest = download_without_checksum(archive.address, source, cache_folder / "downloads", on_progress)
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(digest)
    return archive.address, record.read_text().strip()
