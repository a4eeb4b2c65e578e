"""LitGPT's checkpoints of published models: fetched, converted by LitGPT once, and kept in the cache."""

import fcntl
import hashlib
import shutil
from pathlib import Path

from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint

from experiments.errors import InputError
from experiments.suites.models import Model
from experiments.system.files import cache_folder
from experiments.training.data.hub import Published, fetch_weights
from experiments.training.failures import first_line

WEIGHTS = "lit_model.pth"


def litgpt_checkpoint(facts: Model) -> Published:
    """A folder with lit_model.pth and model_config.yaml of a model that LitGPT knows.

    It appears when all of it is there; others who ask meanwhile wait. Raises InputError when the weights cannot be had.
    """
    return converted(fetch_weights(facts.hub), facts.litgpt)


def converted(source: Published, name: str | None) -> Published:
    """The checkpoint that LitGPT makes of published files for its model ``name``; see litgpt_checkpoint."""
    kept = cache_folder() / "litgpt" / f"{name}-{_version(source)}"
    kept.parent.mkdir(parents=True, exist_ok=True)
    with kept.with_name(kept.name + ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            _convert(source.folder, kept, name)
    return Published(kept, source.commit)


def _version(source: Published) -> str:
    """What tells this version of the files from others: the hub's commit, or names, sizes and times of a folder's."""
    if source.commit:
        return source.commit
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(source.folder.iterdir())]
    return hashlib.sha256(f"{source.folder.resolve()} {facts}".encode()).hexdigest()


def _convert(source: Path, kept: Path, name: str | None) -> None:
    partial = kept.with_name(kept.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for path in source.iterdir():
        (partial / path.name).symlink_to(path.resolve())
    try:
        convert_hf_checkpoint(partial, model_name=name)
        partial.rename(kept)
    except (KeyError, OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{source}: LitGPT cannot convert these weights to {name} ({first_line(error)})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
