"""Store the predictions of the project's own programs in the cache, so that the same program is traced only once."""

import functools
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from experiments.prediction.script.options import ScriptOptions
from experiments.prediction.script.record import ScriptPrediction
from experiments.prediction.times.host import time_file_hashes
from experiments.suites.cards import card_named
from experiments.system.files import CODE_FOLDER, cache_folder, write_to_cache
from provision.files import read_bytes

FOLDER = "program-predictions"
CODE = ("experiments", "provision")
CODE_SUFFIXES = (".py", ".h", ".cpp", ".yaml", ".toml", ".json")
UNUSED_FOLDERS = (
    *("bundle", "charts", "cli", "evidence", "history"),
    *("notebooks", "notify", "report", "semester", "watch"),
)
"""Folders of the project whose files no prediction depends on."""
PACKAGE_SUFFIXES = (".dist-info", ".egg-info")
VARIABLE_PREFIXES = (
    *("ACCELERATE", "BNB", "CUBLAS", "CUDA", "CUDNN", "DEEPSPEED", "DS_", "FSDP", "HF_", "NCCL", "NVIDIA_TF32"),
    *("PYTORCH", "TORCH", "TRANSFORMERS", "TRITON"),
)
"""Beginnings of the names of environment variables that can change what a program allocates."""
DOWNLOAD_PREFIXES = ("HF_TOKEN", "HF_HUB_")
"""Beginnings of the names of variables that only concern downloads, although VARIABLE_PREFIXES contains HF_."""
PREDICTIONS = TypeAdapter(tuple[ScriptPrediction, ...])


class PredictionStore:
    """Stored predictions of one program, for each group of cards that was traced.

    The key contains everything that can change a prediction: the command with its job, content that the command only
    names (``facts``), the options of the trace, all properties of the cards, this project's code, the versions of all
    installed packages and of Python, the measured times of operations, and the environment variables of the libraries.
    This project's code is read once per process, the rest for each key: it can change while a notebook runs.
    Neither failures nor predictions that ended at the time limit are stored. The folder of all stored predictions has
    the limits of ``write_to_cache``.
    """

    def __init__(self, command: Sequence[str], options: ScriptOptions, facts: Iterable[str] = ()) -> None:
        """Describe the program. facts: content that the command only names, such as a model's configuration."""
        described = {name: str(getattr(options, name)) for name in ("steps", "limit_s", "all_ranks", "gpus")}
        self._program = [*command, json.dumps(described), *facts]

    def read(self, group: Sequence[str]) -> list[ScriptPrediction] | None:
        """Return the predictions for a group of cards; None if none are stored, or if the file is not usable."""
        try:
            predictions = list(PREDICTIONS.validate_json(read_bytes(self.path(group))))
        except (OSError, ValidationError):
            return None
        return predictions if predictions and all(_is_for_group(one, group) for one in predictions) else None

    def write(self, group: Sequence[str], predictions: Sequence[ScriptPrediction]) -> None:
        """Store the predictions that are for this group of cards.

        Nothing is stored if no prediction is for the group, if one ended at the time limit, or if the cache cannot be
        written.
        """
        of_group = tuple(one for one in predictions if _is_for_group(one, group))
        if not of_group or any(one.ended == "time limit" for one in of_group):
            return
        with suppress(OSError):
            path = self.path(group)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_to_cache(path, PREDICTIONS.dump_json(of_group).decode())

    def path(self, group: Sequence[str]) -> Path:
        """Return the file of the predictions for a group of cards."""
        cards = [f"{name} {card_named(name).model_dump_json()}" for name in group]
        parts = [*self._program, *cards, _code_sha256(), sys.version, *_packages(), *time_file_hashes(), *_variables()]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
        return cache_folder() / FOLDER / f"{key}.json"


def _is_for_group(prediction: ScriptPrediction, group: Sequence[str]) -> bool:
    return {card.card for card in prediction.cards} == {*group}


@functools.cache
def _code_sha256() -> str:
    """Return the SHA-256 of the project's files that a prediction can depend on, with their names."""
    digest = hashlib.sha256()
    for folder in CODE:
        for path in _code_files(CODE_FOLDER / folder):
            digest.update(str(path.relative_to(CODE_FOLDER)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _code_files(folder: Path) -> list[Path]:
    found: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in UNUSED_FOLDERS]
        found += [Path(place, name) for name in names if name.endswith(CODE_SUFFIXES) and not name.startswith(".")]
    return sorted(path for path in found if path.is_file())


def _packages() -> tuple[str, ...]:
    """Return the names of the metadata folders of all installed packages, which contain the names and versions.

    A notebook can install a package between two predictions.
    """
    found: set[str] = set()
    for place in filter(os.path.isdir, sys.path):
        found.update(name for name in os.listdir(place) if name.endswith(PACKAGE_SUFFIXES))
    return tuple(sorted(found))


def _variables() -> list[str]:
    names = [name for name in os.environ if name.startswith(VARIABLE_PREFIXES)]
    names = [name for name in names if not name.startswith(DOWNLOAD_PREFIXES)]
    return sorted(f"{name}={os.environ[name]}" for name in names)
