"""The package as a user installs it: the wheel in a new environment outside the checkout."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

from provision.configure.build_context import PROJECT

PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
OFFLINE = ["--no-index", "--no-deps"]
HIDDEN = re.compile(r"PYTHONPATH|TESTBED_|OS_|HF_|COV_|PYTEST_")


@dataclass(frozen=True)
class Environment:
    """An environment with the package, and a home folder with an SSH key."""

    folder: Path
    home: Path

    @property
    def packages(self) -> Path:
        """Return the folder in which the package is installed."""
        (found,) = self.folder.glob("lib/python3*/site-packages")
        return found

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run one of its programs in the home folder, without the environment variables of the tests."""
        environ = {name: value for name, value in os.environ.items() if not HIDDEN.match(name)}
        environ |= {"HOME": str(self.home), "XDG_CACHE_HOME": str(self.home / "cache"), "HF_HUB_OFFLINE": "1"}
        program = str(self.folder / "bin" / command[0])
        return subprocess.run(
            [program, *command[1:]], cwd=self.home, env=environ, capture_output=True, text=True, check=False
        )


def project() -> dict[str, object]:
    """Return the table [project] of pyproject.toml."""
    found: dict[str, object] = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    return found


def build_wheel(folder: Path) -> Path:
    """Build the project's wheel into ``folder``."""
    subprocess.run([*PIP, "wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", folder, PROJECT], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(source: Path, folder: Path, libraries: Path, *options: str) -> Environment:
    """Create an environment with a wheel or a project; its dependencies are taken from the folder ``libraries``."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    environment = Environment(folder / "env", folder / "home")
    (environment.packages / "libraries.pth").write_text(f"{libraries}\n")
    (environment.home / ".ssh").mkdir(parents=True)
    key = environment.home / ".ssh" / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    python = environment.folder / "bin" / "python"
    subprocess.run([*PIP, "--python", python, "install", *OFFLINE, *options, source], check=True)
    return environment


def link_dependencies(folder: Path) -> Path:
    """Fill ``folder`` with the packages that `pip install` would install, as links to this environment."""
    folder.mkdir()
    for name in sorted(_required_distributions(project()["dependencies"])):  # type: ignore[arg-type]
        for source in _top_level(distribution(name)):
            (folder / source.name).symlink_to(source)
    return folder


def _required_distributions(requirements: Iterable[str]) -> set[str]:
    """Return the names of the distributions that these requirements install, including indirect ones."""
    found: set[str] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        if requirement.name.lower() in found or not _requirement_applies(requirement):
            continue
        found.add(requirement.name.lower())
        waiting += [Requirement(text) for text in distribution(requirement.name).requires or ()]
    return found


def _requirement_applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def _top_level(dist: Distribution) -> set[Path]:
    """Return the files and folders of a distribution at the top level of site-packages."""
    root = Path(str(dist.locate_file("")))
    names = {file.parts[0] for file in dist.files or ()} - {"..", "__pycache__"}
    return {root / name for name in names}
