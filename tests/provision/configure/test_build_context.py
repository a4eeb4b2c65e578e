"""The build's context: the same files, the same bytes."""

import os
import tarfile
from pathlib import Path

import pytest

from provision.configure.build_context import PARTS, pack


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a file in each part of a context."""
    root = tmp_path / "project"
    for part in PARTS:
        file = root / part if "." in part else root / part / "code.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(part)
    return root


def packed(project: Path) -> bytes:
    pack(archive := project.parent / "context.tar.gz", project)
    return archive.read_bytes()


def test_times_owners_and_masks_of_files_do_not_change_the_context(project: Path) -> None:
    first = packed(project)
    changed = project / "experiments" / "code.py"
    os.utime(changed, (1, 1))
    changed.chmod(0o600)
    assert packed(project) == first


def test_a_changed_file_changes_the_context(project: Path) -> None:
    first = packed(project)
    (project / "experiments" / "code.py").write_text("other")
    assert packed(project) != first


def test_bytecode_stays_at_home(project: Path) -> None:
    (project / "experiments" / "__pycache__").mkdir()
    (project / "experiments" / "__pycache__" / "code.pyc").write_text("bytecode")
    packed(project)
    with tarfile.open(project.parent / "context.tar.gz") as tar:
        assert not [name for name in tar.getnames() if "__pycache__" in name]
