"""The build context of the container image, as a reproducible archive.

The playbook (ansible/) and the Dockerfile (containers/) are at the top of a checkout. In an installed package they are
in provision/files/.
"""

from pathlib import Path

from provision import reproducible

PROJECT = Path(__file__).parents[2]
CONTEXT_FOLDERS = ("containers", "experiments", "provision")
EXCLUDED_FOLDERS = {"__pycache__", "evidence", "files"}
"""Names of folders that are not in the build context. Without evidence/, a new stored run causes no new build."""


def packaged_folder(name: str, project: Path = PROJECT) -> Path:
    """Return the folder ``ansible`` or ``containers`` of the installed package, or else of the checkout."""
    installed = project / "provision" / "files" / name
    return installed if installed.is_dir() else project / name


def write_build_context(archive: Path, project: Path = PROJECT) -> None:
    """Write the build context to ``archive``, a .tar.gz."""
    with archive.open("wb") as target:
        reproducible.write_archive(target, _context_files(project))


def checkout_commit(project: Path = PROJECT) -> str:
    """Return the checkout's commit, with -dirty if files differ from it; '' outside a checkout or without git."""
    return reproducible.checkout_commit(project)


def _context_files(project: Path) -> dict[str, Path]:
    """Return the files of the context by their names in the archive."""
    folders = {part: packaged_folder(part, project) for part in CONTEXT_FOLDERS}
    return {
        f"{part}/{path.relative_to(folder).as_posix()}": path
        for part, folder in folders.items()
        for path in reproducible.files_in(folder, EXCLUDED_FOLDERS)
    }
