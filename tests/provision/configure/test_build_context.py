"""The build context: equal files give equal bytes."""

import os
import tarfile
from pathlib import Path

import pytest

from provision.configure.build_context import CONTEXT_FOLDERS, packaged_folder, write_build_context


@pytest.fixture
def project_folder(tmp_path: Path) -> Path:
    """A project with a file in each part of a context."""
    root = tmp_path / "project"
    for part in CONTEXT_FOLDERS:
        file = root / part / "code.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(part)
    return root


def packed(project: Path) -> bytes:
    write_build_context(archive := project.parent / "context.tar.gz", project)
    return archive.read_bytes()


def test_times_and_permissions_of_files_do_not_change_the_build_context(project_folder: Path) -> None:
    first = packed(project_folder)
    changed = project_folder / "experiments" / "code.py"
    os.utime(changed, (1, 1))
    changed.chmod(0o600)
    assert packed(project_folder) == first


def test_a_changed_file_changes_the_build_context(project_folder: Path) -> None:
    first = packed(project_folder)
    (project_folder / "experiments" / "code.py").write_text("other")
    assert packed(project_folder) != first


def test_bytecode_and_evidence_are_not_in_the_build_context(project_folder: Path) -> None:
    (project_folder / "experiments" / "__pycache__").mkdir()
    (project_folder / "experiments" / "__pycache__" / "code.pyc").write_text("bytecode")
    first = packed(project_folder)
    (project_folder / "experiments" / "evidence" / "run").mkdir(parents=True)
    (project_folder / "experiments" / "evidence" / "run" / "result.json").write_text("{}")
    assert packed(project_folder) == first
    with tarfile.open(project_folder.parent / "context.tar.gz") as tar:
        names = tar.getnames()
    assert not [name for name in names if "__pycache__" in name or "evidence" in name]
    assert "experiments/code.py" in names


def test_an_installed_package_packs_the_same_files_as_a_checkout(project_folder: Path) -> None:
    first = packed(project_folder)
    files = project_folder / "provision" / "files"
    files.mkdir()
    (project_folder / "containers").rename(files / "containers")
    assert packaged_folder("containers", project_folder) == files / "containers"
    assert packed(project_folder) == first


def test_the_build_context_of_this_project_has_the_dockerfile_and_the_code(tmp_path: Path) -> None:
    write_build_context(tmp_path / "context.tar.gz")
    with tarfile.open(tmp_path / "context.tar.gz") as tar:
        found = set(tar.getnames())
    assert {"containers/Dockerfile", "containers/pyproject.toml", "containers/current.txt"} <= found
    assert {"experiments/cli/app.py", "experiments/suites/catalog/cards.yaml", "provision/models.py"} <= found
    assert not [name for name in found if "evidence" in name]
