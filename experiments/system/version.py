"""Version of this program."""

import tomllib
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed

from experiments.system.files import CODE_FOLDER

DISTRIBUTION = "llm-testbed"


def version() -> str:
    """Return the version of the checkout, else of the installed distribution."""
    try:
        return str(tomllib.loads((CODE_FOLDER / "pyproject.toml").read_text())["project"]["version"])
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        pass
    try:
        return installed(DISTRIBUTION)
    except PackageNotFoundError:
        return "unknown"
