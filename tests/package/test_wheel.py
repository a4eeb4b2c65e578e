"""Features of an installed wheel: with only its dependencies, and with all optional packages.

The wheel is installed without an index. The first environment has only the required dependencies, linked from the
environment that runs the tests. The second one has all packages of that environment.
"""

import json
import shutil
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from provision.configure.build_context import PROJECT, write_build_context
from tests.support.processes.phantom_library import cache_with_library
from tests.support.services.installed_package import Environment, build_wheel, install, link_dependencies, project

pytestmark = pytest.mark.xdist_group("package")
ROW = "single_gpu_blip2/baseline"
DATA = ("*.yaml", "*.toml", "*.ipynb", "*.cpp", "*.h", "*.html", "*.css", "*.js")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def base_environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Create the environment of `pip install llm-testbed`."""
    folder = tmp_path_factory.mktemp("plain")
    return install(wheel, folder, link_dependencies(folder / "libraries"))


@pytest.fixture(scope="module")
def full_environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Create an environment with all optional packages."""
    return install(wheel, tmp_path_factory.mktemp("complete"), Path(sysconfig.get_path("purelib")))


def test_the_wheel_has_every_file_that_the_code_reads_and_no_evidence(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    packages = [PROJECT / "experiments", PROJECT / "provision"]
    files = {path for package in packages for pattern in ("*.py", *DATA) for path in package.rglob(pattern)}
    expected = {str(path.relative_to(PROJECT)) for path in files if "evidence" not in path.parts}
    moved = [path for name in ("ansible", "containers") for path in (PROJECT / name).rglob("*") if path.is_file()]
    expected |= {f"provision/files/{path.relative_to(PROJECT)}" for path in moved if path.suffix != ".pyc"}
    assert expected | {"experiments/py.typed", "provision/py.typed"} <= names
    assert not [name for name in names if "evidence" in name or name.startswith(("ansible/", "containers/", "tests/"))]


def test_the_image_installs_the_same_version_and_command() -> None:
    image = tomllib.loads((PROJECT / "containers" / "pyproject.toml").read_text())["project"]
    assert {key: project()[key] for key in image} == image


def test_the_version_is_that_of_the_metadata(base_environment: Environment) -> None:
    done = base_environment.run("testbed", "--version")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == project()["version"]


def test_suites_are_listed_without_optional_packages(base_environment: Environment) -> None:
    done = base_environment.run("testbed", "list", "--json")
    assert done.returncode == 0, done.stderr
    assert all(f'"{path.stem}"' in done.stdout for path in (PROJECT / "experiments" / "suites" / "labs").glob("*.yaml"))


@pytest.mark.parametrize("command", ["python -m experiments --help", "testbed --help"])
def test_help_needs_no_optional_package(base_environment: Environment, command: str) -> None:
    done = base_environment.run(*command.split())
    assert done.returncode == 0, done.stderr
    assert "predict" in done.stdout


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (f"predict {ROW} --card a100_80gb", "train"),
        ("run single_gpu_blip2 --row baseline --size tiny", "train"),
        ("lease --dry-run --node-type gpu_a100_pcie --yes", "chameleon"),
        ("slots --node-type gpu_a100_pcie", "chameleon"),
        ("doctor --site chameleon", "chameleon"),
    ],
)
def test_a_command_whose_extra_is_not_installed_names_the_extra_in_one_line(
    base_environment: Environment, command: str, extra: str
) -> None:
    done = base_environment.run("testbed", *command.split())
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert f"[{extra}]" in done.stderr


def test_a_row_is_predicted_with_the_c_sources_in_the_wheel(full_environment: Environment) -> None:
    """The phantom device's library is compiled once for each version of its sources, so the wheel uses an earlier one.

    This saves the test a compilation.
    """
    cache = cache_with_library(full_environment.home / "cache" / "llm-testbed")
    (library,) = cache.iterdir()
    done = full_environment.run("testbed", "predict", ROW, "--card", "a100_80gb", "--json")
    assert done.returncode == 0, done.stderr
    (prediction,) = json.loads(done.stdout)
    assert prediction["peak_gib"] > prediction["usable_gib"]
    assert list(cache.glob("phantom-*.so")) == [library]


def test_the_installed_package_runs_a_miniature_and_writes_its_report(full_environment: Environment) -> None:
    done = full_environment.run(
        "testbed",
        "run",
        "single_gpu_blip2",
        "--row",
        "reduced-batch",
        "--size",
        "tiny",
        "--no-predict",
        "--run-id",
        "one",
    )
    assert done.returncode == 0, done.stderr
    folder = full_environment.home / "results" / "one"
    assert (folder / "report.html").exists()
    assert (folder / "single_gpu_blip2" / "reduced-batch" / "notebook.ipynb").exists()
    assert '"git_commit":null' in (folder / "run.json").read_text().replace(" ", "")


def test_a_lease_without_an_account_shows_its_plan_and_names_what_is_missing(full_environment: Environment) -> None:
    done = full_environment.run("testbed", "lease", "--dry-run", "--node-type", "gpu_a100_pcie", "--yes")
    assert done.returncode == 0, done.stderr
    assert "no account" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_installed_package_finds_its_complete_playbook(full_environment: Environment) -> None:
    found = full_environment.run("python", "-c", "from provision.configure.playbook import PLAYBOOK; print(PLAYBOOK)")
    playbook = Path(found.stdout.strip())
    assert playbook.is_relative_to(full_environment.packages), found.stderr
    checked = full_environment.run(
        "python", "-m", "ansible", "playbook", "--syntax-check", "-i", "nodes,", str(playbook)
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_installed_package_and_a_checkout_build_the_image_from_the_same_bytes(
    full_environment: Environment, tmp_path: Path
) -> None:
    code = (
        "from pathlib import Path; from provision.configure.build_context import write_build_context;"
        "write_build_context(Path('context.tar.gz'))"
    )
    done = full_environment.run("python", "-c", code)
    assert done.returncode == 0, done.stderr
    write_build_context(tmp_path / "context.tar.gz")
    assert (full_environment.home / "context.tar.gz").read_bytes() == (tmp_path / "context.tar.gz").read_bytes()


def test_the_image_installs_the_command_from_its_context(tmp_path: Path) -> None:
    write_build_context(tmp_path / "context.tar.gz")
    with tarfile.open(tmp_path / "context.tar.gz") as context:
        context.extractall(tmp_path / "code")
    shutil.copy(tmp_path / "code" / "containers" / "pyproject.toml", tmp_path / "code")
    libraries = Path(sysconfig.get_path("purelib"))
    image = install(tmp_path / "code", tmp_path, libraries, "--no-build-isolation", "--editable")
    listed = image.run("testbed", "list", "--json")
    assert listed.returncode == 0, listed.stderr
    where = image.run("python", "-c", "import experiments; print(experiments.__file__)")
    assert Path(where.stdout.strip()).is_relative_to(tmp_path / "code")
