"""Provenance of a result: commit, hash of the training code, versions of the libraries."""

import hashlib
import os
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from experiments.system.files import CODE_FOLDER
from provision import reproducible

PACKAGE = CODE_FOLDER / "experiments"
LIBRARIES = (
    "torch",
    "lightning",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "deepspeed",
    "litgpt",
    "datasets",
    "papermill",
    "nvidia-ml-py",
)


@cache
def code_sha256() -> str:
    """Return the SHA-256 of the training code, over names and contents of its files, hexadecimal."""
    digest = hashlib.sha256()
    suite_modules = [PACKAGE / "suites" / name for name in ("attention_kernels.py", "miniature.py")]
    for path in sorted([*suite_modules, *(PACKAGE / "training").rglob("*.py")]):
        digest.update(str(path.relative_to(PACKAGE)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@cache
def git_commit() -> str | None:
    """Return the checkout's commit, with '-dirty' if files differ from it; None outside a checkout.

    For a copy without a repository, as in a container image, TESTBED_COMMIT states the commit.
    """
    if named := os.environ.get("TESTBED_COMMIT"):
        return named
    return reproducible.checkout_commit(CODE_FOLDER) or None


def image() -> str | None:
    """Return the container image of this process, from TESTBED_IMAGE; None outside a container."""
    return os.environ.get("TESTBED_IMAGE") or None


def versions() -> dict[str, str]:
    """Return the versions of the installed libraries that a result depends on, by name."""
    installed = {}
    for name in LIBRARIES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed
