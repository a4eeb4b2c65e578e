"""Download the data of a run into the cache of a cluster, as a job that the rows wait for.

python -m experiments.inputs.fetch_dataset ARTIFACT

ARTIFACT: an Artifact of the kind "data", as JSON. Prints the path of the data, or the reason for a failure (see
requirements.run_fetch).
"""

import os
import sys
from pathlib import Path

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

from experiments.errors import InputError
from experiments.inputs.archive import unpack_archive
from experiments.inputs.download import download, is_url
from experiments.inputs.formats import find_data_folder
from experiments.inputs.requirements import Artifact, ProgressPrinter, run_fetch
from experiments.system.files import cache_folder

MAX_ATTEMPTS = 2


def fetch_dataset(artifact: Artifact) -> list[Path]:
    """Download and unpack the data; return its path.

    Raises InputError if the download fails twice, for example because the checksum differs, or if the data cannot be
    unpacked.
    """
    path = cache_folder() / "data" / f"{artifact.sha256}-{artifact.dataset}"
    unpacked = path.with_name(artifact.sha256)
    if not unpacked.exists():
        archive = _download(artifact) if is_url(artifact.name) else Path(artifact.name)
        unpack_archive(archive, unpacked, artifact.dataset)
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.symlink_to(find_data_folder(unpacked, artifact.dataset))
    return [fresh.replace(path)]


def _download(artifact: Artifact) -> Path:
    tries = Retrying(stop=stop_after_attempt(MAX_ATTEMPTS), retry=retry_if_exception_type(InputError), reraise=True)
    return tries(download, artifact.name, artifact.sha256, cache_folder() / "downloads", ProgressPrinter())


if __name__ == "__main__":
    sys.exit(run_fetch(sys.argv[1], fetch_dataset))
