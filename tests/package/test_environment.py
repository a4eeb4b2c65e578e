"""The environment that make creates: locked lists of packages, installed by uv."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from provision.configure.build_context import PROJECT

CONTAINERS = PROJECT / "containers"
LISTS = {
    **{name: CONTAINERS / f"{name}.txt" for name in ("current", "as-taught", "jupyter", "uv")},
    "docs": PROJECT / "docs" / "requirements.txt",
    "mutants": PROJECT / "tests" / "benchmarks" / "mutants" / "requirements.txt",
    "openstack": PROJECT / "tests" / "testbed" / "openstack" / "requirements.txt",
    "tempest": PROJECT / "tests" / "testbed" / "openstack" / "tempest" / "requirements.txt",
}
LOCKED = re.compile(r"^(?P<version>[\w.-]+==[\w.!+]+) \\\n(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+", re.MULTILINE)


def create(folder: Path, *locks: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, (CONTAINERS / "environment.py", folder, *locks))]
    return subprocess.run(command, capture_output=True, text=True)


def normalized(requirement: str) -> str:
    name, _, version = requirement.partition("==")
    return f"{re.sub('[-_.]+', '-', name).lower()}=={version}"


def write_lock_of_one_package(folder: Path, name: str) -> Path:
    """Write a lock with a single package of the current list."""
    text = (CONTAINERS / "locks" / "current.txt").read_text()
    entry = next(match[0] for match in LOCKED.finditer(text) if match["version"].startswith(f"{name}=="))
    lock = folder / "lock.txt"
    lock.write_text(entry)
    return lock


@pytest.mark.parametrize("name", LISTS)
def test_a_lock_file_has_the_versions_of_its_package_list_and_a_hash_for_each(name: str) -> None:
    """If this fails, run make lock."""
    listed = {line for line in LISTS[name].read_text().splitlines() if "==" in line and not line.startswith("torch==")}
    lock = (CONTAINERS / "locks" / f"{name}.txt").read_text()
    assert {normalized(match["version"]) for match in LOCKED.finditer(lock)} == {normalized(line) for line in listed}


@pytest.mark.parametrize("name", ["current", "as-taught"])
def test_a_comment_of_a_lock_file_names_the_version_of_pytorch(name: str) -> None:
    (torch,) = [line for line in LISTS[name].read_text().splitlines() if line.startswith("torch==")]
    assert f"# {torch}\n" in (CONTAINERS / "locks" / f"{name}.txt").read_text()


def test_an_interrupted_environment_is_created_again(tmp_path: Path) -> None:
    lock, folder = write_lock_of_one_package(tmp_path, "iniconfig"), tmp_path / "env"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").write_text("half of a file")
    done = create(folder, lock)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3: packages" in done.stdout
    subprocess.run([folder / "bin" / "python", "-c", "import iniconfig"], check=True)
    assert create(folder, lock).stdout == ""


def test_a_package_whose_file_has_another_hash_is_rejected(tmp_path: Path) -> None:
    lock, folder = write_lock_of_one_package(tmp_path, "iniconfig"), tmp_path / "env"
    lock.write_text(re.sub("[0-9a-f]{64}", "0" * 64, lock.read_text()))
    done = create(folder, lock)
    assert done.returncode == 1
    assert "hash" in done.stderr.lower()
    assert done.stderr.splitlines()[-1] == "3 of 3: packages: exit code 1; run the same command to try again"
    assert not (folder / ".made").exists()


def test_the_environment_that_make_creates_is_linked_and_has_the_command_testbed(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in ("Makefile", "containers", "experiments", "provision"):
        (checkout / name).symlink_to(PROJECT / name)
    make = ["make", f"CACHE={tmp_path}"]
    listed = subprocess.run([*make, "help"], cwd=checkout, capture_output=True, text=True, check=True)
    folder = Path(re.findall(r"^environment: (.+), linked as", listed.stdout, re.MULTILINE)[0])
    (folder / "bin").mkdir(parents=True)
    (folder / ".made").touch()
    python = folder / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    subprocess.run([*make, "env"], cwd=checkout, check=True)
    command = [str(checkout / ".venv" / "bin" / "testbed"), "list", "--json"]
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "__init__.py").touch()
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=bare, capture_output=True, text=True)
    assert "single_gpu_blip2" in done.stdout, done.stderr
