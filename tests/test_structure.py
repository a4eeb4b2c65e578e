"""The project's structure: few files at the top, short files, small folders, and imports that point downward."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.system.files import CODE_FOLDER

PACKAGES = ("experiments", "provision")
SOURCES = (*PACKAGES, "tests")
FOLDERS = sorted({path.parent for folder in SOURCES for path in (CODE_FOLDER / folder).rglob("*.py")})


def test_the_top_of_experiments_has_at_most_six_python_files():
    assert len(list((CODE_FOLDER / "experiments").glob("*.py"))) <= 6


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: str(path.relative_to(CODE_FOLDER)))
def test_a_folder_has_at_most_fourteen_modules(folder: Path):
    modules = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= 14, modules


def test_no_file_of_code_or_tests_is_longer_than_400_lines():
    endings = {".py", ".cpp", ".h", ".js", ".html", ".css"}
    files = [path for folder in SOURCES for path in (CODE_FOLDER / folder).rglob("*") if path.suffix in endings]
    lengths = {str(path.relative_to(CODE_FOLDER)): len(path.read_text().splitlines()) for path in files}
    assert {path: lines for path, lines in lengths.items() if lines > 400} == {}


@pytest.fixture
def lint_imports(tmp_path):
    """Check the import contracts on a copy of the code; return the exit code."""
    for package in PACKAGES:
        shutil.copytree(
            CODE_FOLDER / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "evidence")
        )
    shutil.copy(CODE_FOLDER / "pyproject.toml", tmp_path)
    linter = Path(sys.executable).with_name("lint-imports")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    return lambda: subprocess.run([linter, "--no-cache"], cwd=tmp_path, env=environment, capture_output=True).returncode


def test_no_import_violates_an_import_contract(lint_imports):
    assert lint_imports() == 0


@pytest.mark.parametrize(
    ("module", "planted"),
    [
        ("experiments/suites/cards.py", "import experiments.cli"),
        ("experiments/results/schema.py", "import experiments.runners"),
        ("experiments/training/worker.py", "import experiments.prediction"),
        ("experiments/errors.py", "import experiments.system"),
        ("provision/ssh/login.py", "import provision.leasing"),
        ("provision/models.py", "import experiments"),
        ("experiments/inputs/dataset.py", "import torch"),
        ("experiments/report/write.py", "import subprocess"),
        ("experiments/runners/plan.py", "import fabric"),
    ],
)
def test_an_import_from_a_higher_layer_is_found(module, planted, lint_imports, tmp_path):
    with (tmp_path / module).open("a") as file:
        file.write(f"\n{planted}\n")
    assert lint_imports() == 1


def test_preparing_the_testbed_s_services_needs_only_the_standard_library():
    """`make testbed-env` runs at the same time as `make env`, when no package is installed yet."""
    command = [sys.executable, "-S", "-c", "import tests.testbed.openstack.local_openstack"]
    environment = {**os.environ, "PYTHONPATH": str(CODE_FOLDER)}
    done = subprocess.run(command, cwd=CODE_FOLDER, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
