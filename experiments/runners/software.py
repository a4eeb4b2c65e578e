"""Determine the software that results depend on: the versions of packages, the GPU driver and the GPU model."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from experiments.results.provenance import LIBRARIES, versions
from experiments.results.schema import Result
from provision.choices import ImageVariant
from provision.configure.build_context import packaged_folder
from provision.hardware import gpus
from provision.models import Node

RELEVANT_LIBRARIES = tuple(name for name in LIBRARIES if name not in ("papermill", "nvidia-ml-py"))
"""The packages whose versions can change a result."""
LOCKS: dict[str, tuple[str, ...]] = {"current": ("current",), "as-taught": ("as-taught", "jupyter")}
"""Names of the lock files in containers/locks that define an environment, by the environment's set of versions."""
PIN = re.compile(r"^([\w.-]+)==(\S+)$", re.MULTILINE)
PRINT_VERSIONS = f"""
import json
from importlib.metadata import distributions
found = {{one.name.lower(): one.version for one in distributions() if one.name}}
print(json.dumps({{name: found[name] for name in {RELEVANT_LIBRARIES!r} if name in found}}))
"""


@dataclass(frozen=True)
class Software:
    """The packages, GPUs and GPU driver of a target.

    versions: the version of each package, by name. gpus: names of the GPUs; None if unknown. driver: None if unknown.
    """

    versions: Mapping[str, str]
    gpus: Collection[str] | None = None
    driver: str | None = None


def local_software(node: Node) -> Software:
    """Return the software of this machine."""
    return Software(versions(), {gpu.name for gpu in node.gpus}, gpus.driver_version())


def software_of_image(variant: ImageVariant) -> Software:
    """Return the software of an image variant, from the list of versions with which the image is built."""
    pins = dict(PIN.findall((packaged_folder("containers") / f"{variant}.txt").read_text()))
    return Software({name: pins[name] for name in RELEVANT_LIBRARIES if name in pins})


def lock_files(variant: str) -> list[Path]:
    """Return the lock files of an environment with the versions of ``variant``."""
    return [packaged_folder("containers") / "locks" / f"{name}.txt" for name in LOCKS[variant]]


def parse_software(output: str) -> Software:
    """Return the software from the output of PRINT_VERSIONS."""
    return Software(json.loads(output.strip().splitlines()[-1]))


def software_changes(result: Result, now: Software) -> list[str]:
    """Return the changes since the result was measured, such as 'torch 2.11.0 -> 2.13.0'; empty if none is known.

    The build label of a version, such as +cpu, is not compared. For a result on a CPU, the GPU is not compared.
    """
    if not result.versions:
        return ["the result does not record its versions"]
    device = result.device
    then = {
        name: result.versions[name] for name in RELEVANT_LIBRARIES if name in result.versions and name in now.versions
    }
    found = [
        f"{name} {_version_without_build_label(version)} -> {_version_without_build_label(now.versions[name])}"
        for name, version in then.items()
        if _version_without_build_label(version) != _version_without_build_label(now.versions[name])
    ]
    if device.kind == "cuda" and now.gpus is not None and device.name not in now.gpus:
        found.append(f"GPU {device.name} -> {', '.join(sorted(now.gpus)) or 'none'}")
    elif device.driver and now.driver and device.driver != now.driver:
        found.append(f"driver {device.driver} -> {now.driver}")
    return found


def _version_without_build_label(version: str) -> str:
    return version.partition("+")[0]
