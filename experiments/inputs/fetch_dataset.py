"""Fetches the data of a run into the cache of a cluster, as a job of its own before its rows.

python -m experiments.inputs.fetch_dataset NEED

NEED is a Need of kind data as JSON. See needs.answer for what is printed.
"""

import os
import sys
from pathlib import Path

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

from experiments.errors import InputError
from experiments.inputs.archive import unpack
from experiments.inputs.download import download, is_url
from experiments.inputs.formats import data_folder_in
from experiments.inputs.requirements import Need, Telling, answer
from experiments.system.files import cache_folder

TRIES = 2


def bring(need: Need) -> list[Path]:
    """Where the data is then. Raises InputError when it cannot be had, a spoiled download after a second one."""
    place = cache_folder() / "data" / f"{need.sha256}-{need.dataset}"
    unpacked = place.with_name(need.sha256)
    if not unpacked.exists():
        unpack(_downloaded(need) if is_url(need.name) else Path(need.name), unpacked, need.dataset)
    fresh = place.with_name(f"{place.name}.{os.getpid()}")
    fresh.symlink_to(data_folder_in(unpacked, need.dataset))
    return [fresh.replace(place)]


def _downloaded(need: Need) -> Path:
    tries = Retrying(stop=stop_after_attempt(TRIES), retry=retry_if_exception_type(InputError), reraise=True)
    return tries(download, need.name, need.sha256, cache_folder() / "downloads", Telling())


if __name__ == "__main__":
    sys.exit(answer(sys.argv[1], bring))
