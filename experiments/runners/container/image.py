"""Find the project's container image on this machine by its name and label, or build it.

The Ansible role ansible/roles/images uses the same name and label on leased nodes.
"""

import hashlib
import os
import re
import subprocess
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from experiments.errors import InputError
from experiments.runners.container.engine import FLAG
from experiments.system.processes import process_group
from provision.choices import ImageVariant
from provision.configure.build_context import checkout_commit, packaged_folder, write_build_context
from provision.temporary import TemporaryFolder

if TYPE_CHECKING:
    from docker import DockerClient

PIP_INDEX_VARIABLE = "TESTBED_PIP_INDEX"
BUILDX_MISSING = "docker buildx, which builds the image, is not installed; apt install docker-buildx"
STEP = re.compile(r"#\d+ (\[ *(?:stage-)?\d.*)")
"""A line with which BuildKit begins a step of the Dockerfile."""
UNINFORMATIVE_PREFIX = re.compile(
    r"^([\d.]+ |ERROR: |failed to build: |failed to solve: |rpc error: code = Unknown desc = )+"
)
"""Beginning of an error line that says nothing about the cause. The cause follows."""
FAILED_STEP, END_OF_OUTPUT = " > [", "------"
"""What BuildKit prints before and after the output of a failed step."""


def image_name(variant: ImageVariant) -> str:
    """Return the name of the image of a variant of library versions."""
    return f"llm-testbed:{variant}"


def ensure_image(client: "DockerClient", variant: ImageVariant, print_line: Callable[[str], None]) -> str:
    """Return the ID of the image with this code. If it is missing or was built from other code, build it first.

    print_line: gets a line for each step of the build. Raises InputError with the most informative line if the build
    fails.
    """
    from docker.errors import ImageNotFound

    name, label = image_name(variant), role_variables("vars")["images_label"]
    with TemporaryFolder("image") as scratch:
        context = scratch / "context.tar.gz"
        write_build_context(context)
        label_value = origin_label(variant, context)
        try:
            image = client.images.get(name)
            if image.labels.get(label) == label_value:
                return str(image.id)
            print_line(f"building {name}, because the image has different code")
        except ImageNotFound:
            print_line(f"building {name}: the first time, this downloads some gigabytes")
        _build(context, build_options(variant, f"{label}={label_value}", scratch), print_line)
    return str(client.images.get(name).id)


def origin_label(variant: ImageVariant, context: Path) -> str:
    """Return the value of the image's label: the base image and the build context's SHA-1, as in the Ansible role."""
    with context.open("rb") as file:
        return f"{base_image(variant)} {hashlib.file_digest(file, 'sha1').hexdigest()}"


def base_image(variant: ImageVariant) -> str:
    """Return the name of the image with Python and PyTorch from which the image of the variant is built."""
    return str(role_variables("defaults")["images_bases"][variant])


@cache
def role_variables(kind: str) -> dict[str, Any]:
    """Return the variables of the role that installs the image on nodes. kind: 'vars' or 'defaults'."""
    path = packaged_folder("ansible") / "roles" / "images" / kind / "main.yml"
    return dict(yaml.safe_load(path.read_text()))


def build_options(variant: ImageVariant, label: str, scratch: Path) -> list[str]:
    """Return the options of the build. A package index, which may have a password, is passed as a secret file."""
    arguments = {"BASE_IMAGE": base_image(variant), "PINS": f"{variant}.txt", "COMMIT": checkout_commit()}
    options = ["--tag", image_name(variant), "--file", "containers/Dockerfile", "--label", label]
    options += [part for name, value in arguments.items() for part in ("--build-arg", f"{name}={value}")]
    if index := os.environ.get(PIP_INDEX_VARIABLE):
        secret = scratch / "pip.conf"
        secret.touch(mode=0o600)
        secret.write_text(f"[global]\nindex-url = {index}\n")
        options += ["--secret", f"id=pip.conf,src={secret}"]
    return options


def _build(context: Path, options: Iterable[str], print_line: Callable[[str], None]) -> None:
    """Build the image with ``docker buildx``. Raises InputError if the build fails.

    The Dockerfile mounts caches and secrets, which needs BuildKit. Docker's Python package does not support BuildKit.
    """
    if not has_buildx():
        raise InputError(f"{FLAG}: {BUILDX_MISSING}")
    command = ["docker", "buildx", "build", "--progress", "plain", "--load", *options, "-"]
    lines: list[str] = []
    with (
        context.open("rb") as stdin,
        process_group(command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
    ):
        for line in process.stdout or ():
            lines.append(line.rstrip())
            if step := STEP.match(lines[-1]):
                print_line(f"image: {step[1]}")
        if process.wait():
            raise InputError(f"{FLAG}: the image cannot be built: {failure_in(lines)}")


def has_buildx() -> bool:
    """Return whether Docker's command is installed with buildx."""
    try:
        return subprocess.run(["docker", "buildx", "version"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def failure_in(lines: list[str]) -> str:
    """Return the most informative line of a failed build: the last output of the failed step, else the last line."""
    starts = [number for number, line in enumerate(lines) if line.startswith(FAILED_STEP)]
    after_start = lines[starts[-1] + 1 :] if starts else []
    output = after_start[: after_start.index(END_OF_OUTPUT)] if END_OF_OUTPUT in after_start else []
    printed = [line for line in (output or lines) if line.strip()]
    return UNINFORMATIVE_PREFIX.sub("", printed[-1]) if printed else "no output"
