"""Resolve versions and create environments with uv.

Unless UV_FIND_LINKS is set, uv also finds packages in the folder of pip's variable PIP_FIND_LINKS.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.system.packages import require_packages
from provision.temporary import TemporaryFolder


def run_uv(*arguments: str | Path) -> str:
    """Run uv; return its output. Raises CalledProcessError if it fails, MissingPackage if it is not installed."""
    require_packages("uv")
    from uv import find_uv_bin

    done = subprocess.run(
        [find_uv_bin(), *map(str, arguments), "--quiet"],
        env=_uv_variables(),
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


def resolve(wanted: Mapping[str, str], preferred: Mapping[str, str]) -> str:
    """Return a list of exact versions, as text: of the packages in ``wanted``, and of all their dependencies.

    The packages in ``wanted`` get the versions given there. Dependencies get the versions in ``preferred`` where
    possible. Raises CalledProcessError if no compatible versions exist.
    """
    with TemporaryFolder("versions") as folder:
        wanted_file, found = folder / "wanted.in", folder / "found.txt"
        wanted_file.write_text(requirement_lines(wanted))
        found.write_text(requirement_lines({**preferred, **wanted}))
        run_uv(
            "pip", "compile", wanted_file, "--output-file", found, "--no-header", "--no-annotate", *_python_options()
        )
        return found.read_text()


def create_without_dependencies(folder: Path, requirements: Path) -> None:
    """Create an environment of exact versions, without their dependencies. Raises CalledProcessError."""
    run_uv("venv", "--clear", "--python", sys.executable, folder)
    run_uv("pip", "install", "--no-deps", "--python", folder, "--requirement", requirements)


def add_dependencies(folder: Path, package: str, fixed_versions: Mapping[str, str]) -> None:
    """Install the dependencies of an installed package, such as the CUDA libraries of PyTorch.

    package: the package with its exact version, such as 'torch==2.11.0'. fixed_versions: versions of packages that must
    not change. Raises CalledProcessError.
    """
    with TemporaryFolder("versions") as temporary:
        overrides = temporary / "overrides.txt"
        overrides.write_text(requirement_lines(fixed_versions))
        run_uv("pip", "install", "--python", folder, "--overrides", overrides, package)


def requirement_lines(versions: Mapping[str, str]) -> str:
    """Return a list of exact versions as text."""
    return "".join(f"{name}=={version}\n" for name, version in sorted(versions.items()))


def _python_options() -> Sequence[str]:
    return "--python-version", f"{sys.version_info.major}.{sys.version_info.minor}"


def _uv_variables() -> dict[str, str]:
    """Return the environment variables for uv. Without UV_FIND_LINKS, uv chooses the PyTorch build for this machine."""
    environment = dict(os.environ)
    for name, pip_name in {"UV_FIND_LINKS": "PIP_FIND_LINKS", "SSL_CERT_FILE": "PIP_CERT"}.items():
        if pip_name in environment:
            environment.setdefault(name, environment[pip_name])
    if "UV_FIND_LINKS" not in environment:
        environment.setdefault("UV_TORCH_BACKEND", "auto")
    environment.pop("VIRTUAL_ENV", None)
    return environment
