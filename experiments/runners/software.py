"""What a result depends on besides its row and the training code: versions of packages, driver and GPU."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from experiments.results.provenance import LIBRARIES, versions
from experiments.results.schema import Result
from provision.choices import ImageVariant
from provision.configure.build_context import data_folder
from provision.hardware import gpus
from provision.models import Node

DECIDING = tuple(name for name in LIBRARIES if name not in ("papermill", "nvidia-ml-py"))
"""The packages whose versions decide a result."""
PIN = re.compile(r"^([\w.-]+)==(\S+)$", re.MULTILINE)
PRINT_VERSIONS = f"""
import json
from importlib.metadata import distributions
found = {{one.name.lower(): one.version for one in distributions() if one.name}}
print(json.dumps({{name: found[name] for name in {DECIDING!r} if name in found}}))
"""


@dataclass(frozen=True)
class Software:
    """Versions of packages at a target, and its GPUs and their driver; None: unknown."""

    versions: Mapping[str, str]
    gpus: Collection[str] | None = None
    driver: str | None = None


def software_here(node: Node) -> Software:
    """Return the software of this machine."""
    return Software(versions(), {gpu.name for gpu in node.gpus}, gpus.driver_version())


def software_of_image(variant: ImageVariant) -> Software:
    """Return the software of the image of that variant, from the list of versions that it is built from."""
    pins = dict(PIN.findall((data_folder("containers") / f"{variant}.txt").read_text()))
    return Software({name: pins[name] for name in DECIDING if name in pins})


def printed_software(output: str) -> Software:
    """Return the software from what PRINT_VERSIONS prints."""
    return Software(json.loads(output.strip().splitlines()[-1]))


def changes(result: Result, now: Software) -> list[str]:
    """Return what has changed since the result, such as 'torch 2.11.0 -> 2.13.0'; empty if nothing is known to.

    A build's label (2.13.0+cpu) is not compared. A result on a CPU does not depend on the GPUs.
    """
    if not result.versions:
        return ["its versions are not recorded"]
    device = result.device
    then = {name: result.versions[name] for name in DECIDING if name in result.versions and name in now.versions}
    found = [
        f"{name} {_public(version)} -> {_public(now.versions[name])}"
        for name, version in then.items()
        if _public(version) != _public(now.versions[name])
    ]
    if device.kind == "cuda" and now.gpus is not None and device.name not in now.gpus:
        found.append(f"GPU {device.name} -> {', '.join(sorted(now.gpus)) or 'none'}")
    elif device.driver and now.driver and device.driver != now.driver:
        found.append(f"driver {device.driver} -> {now.driver}")
    return found


def _public(version: str) -> str:
    return version.partition("+")[0]
