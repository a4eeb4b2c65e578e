"""Download published models, convert them to LitGPT checkpoints once, and cache the checkpoints."""

import fcntl
import hashlib
import shutil
from pathlib import Path

from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint

from experiments.errors import InputError
from experiments.suites.models import Model
from experiments.system.files import cache_folder
from experiments.training.data.hub import VersionedFolder, fetch_weights
from experiments.training.failures import first_line

WEIGHTS_FILE = "lit_model.pth"


def litgpt_checkpoint(base_model: Model) -> VersionedFolder:
    """Return a folder with lit_model.pth and model_config.yaml of a model that LitGPT supports.

    The folder appears under its name only when it is complete. If several processes need the same checkpoint, one of
    them converts it, and the others wait. Raises InputError if the weights cannot be downloaded or converted.
    """
    return convert_checkpoint(fetch_weights(base_model.hub), base_model.litgpt)


def convert_checkpoint(source: VersionedFolder, name: str | None) -> VersionedFolder:
    """Convert the published files in ``source`` to the checkpoint of LitGPT's model ``name``; see litgpt_checkpoint."""
    target = cache_folder() / "litgpt" / f"{name}-{_version(source)}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(target.name + ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            _convert(source.folder, target, name)
    return VersionedFolder(target, source.commit)


def _version(source: VersionedFolder) -> str:
    """Return an id of the files' version: the commit on the hub; for local files a hash of names, sizes and times."""
    if source.commit:
        return source.commit
    entries = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(source.folder.iterdir())]
    return hashlib.sha256(f"{source.folder.resolve()} {entries}".encode()).hexdigest()


def _convert(source: Path, target: Path, name: str | None) -> None:
    partial = target.with_name(target.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for path in source.iterdir():
        (partial / path.name).symlink_to(path.resolve())
    try:
        convert_hf_checkpoint(partial, model_name=name)
        partial.rename(target)
    except (KeyError, OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{source}: LitGPT cannot convert these weights to {name} ({first_line(error)})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
