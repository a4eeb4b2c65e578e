"""The software that results depend on: versions of packages, driver and GPU."""

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
"""Lock files in containers/locks whose packages make up an environment, by its set of versions."""
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

    versions: the version of each package, by name. gpus, driver: None if unknown.
    """

    versions: Mapping[str, str]
    gpus: Collection[str] | None = None
    driver: str | None = None


def local_software(node: Node) -> Software:
    """Return the software of this machine."""
    return Software(versions(), {gpu.name for gpu in node.gpus}, gpus.driver_version())


def software_of_image(variant: ImageVariant) -> Software:
    """Return the software of the image of that variant, from the version list that the image is built from."""
    pins = dict(PIN.findall((packaged_folder("containers") / f"{variant}.txt").read_text()))
    return Software({name: pins[name] for name in RELEVANT_LIBRARIES if name in pins})


def lock_files(variant: str) -> list[Path]:
    """Return the lock files of an environment with the versions of ``variant``."""
    return [packaged_folder("containers") / "locks" / f"{name}.txt" for name in LOCKS[variant]]


def parse_software(output: str) -> Software:
    """Return the software from the output of PRINT_VERSIONS."""
    return Software(json.loads(output.strip().splitlines()[-1]))


def software_changes(result: Result, now: Software) -> list[str]:
    """Return the changes since the result, such as 'torch 2.11.0 -> 2.13.0'; empty if no change is known.

    The label of a build (2.13.0+cpu) is not compared. A result on a CPU does not depend on the GPUs.
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
