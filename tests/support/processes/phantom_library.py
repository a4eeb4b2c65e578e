"""Caches that have the compiled library of the phantom device, so that tests do not compile it again."""

from importlib.util import find_spec
from pathlib import Path

from experiments.prediction.phantom.library import compiled_library
from experiments.system.files import cache_folder


def cache_with_library(folder: Path) -> Path:
    """Return ``folder`` as a cache that has only the library of this checkout, compiled at its first use."""
    library = compiled_library(cache_folder(), Path(find_spec("torch").origin).parent)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / library.name).symlink_to(library)
    return folder
