"""The build context: equal files give equal bytes."""

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


def test_bytecode_and_evidence_are_left_out(project: Path) -> None:
    (project / "experiments" / "__pycache__").mkdir()
    (project / "experiments" / "__pycache__" / "code.pyc").write_text("bytecode")
    first = packed(project)
    (project / "experiments" / "evidence" / "run").mkdir(parents=True)
    (project / "experiments" / "evidence" / "run" / "result.json").write_text("{}")
    assert packed(project) == first
    with tarfile.open(project.parent / "context.tar.gz") as tar:
        names = tar.getnames()
    assert not [name for name in names if "__pycache__" in name or "evidence" in name]
    assert "experiments/code.py" in names
