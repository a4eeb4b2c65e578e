"""The build context of the image, as a reproducible archive."""

from pathlib import Path

from provision import reproducible

PROJECT = Path(__file__).parents[2]
PARTS = ("containers", "experiments", "provision", "pyproject.toml", "README.md")
LEFT_OUT = {"__pycache__", "evidence"}
"""Folders that are not in the image: a new one must not cause a rebuild."""


def pack(archive: Path, project: Path = PROJECT) -> None:
    """Write the build context to ``archive``, a .tar.gz."""
    with archive.open("wb") as target:
        reproducible.write_archive(target, project, reproducible.files_in(project, PARTS, LEFT_OUT))


def commit(project: Path = PROJECT) -> str:
    """Return the checkout's commit; see reproducible.commit."""
    return reproducible.commit(project)
