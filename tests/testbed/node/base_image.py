"""A base image without a registry: Debian's Python 3.11 with this environment's PyTorch.

The image replaces PyTorch's own. It is created once, as an archive for `docker load`, and cached.
"""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from importlib import metadata
from pathlib import Path

from experiments.system.files import cache_folder
from tests.testbed.node.image import Say, bootstrap
from tests.testbed.openstack.environment import locked

NAME = "localhost/testbed-base:1"
SUITE = "bookworm"
PACKAGES = ("ca-certificates", "g++", "nvtop", "python3", "python3-dev", "python3-venv")
PYTHON = "/opt/python"
PATH = f"PATH={PYTHON}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


def base_archive(say: Say) -> Path:
    """Return the archive, created now if it is not cached."""
    torch = metadata.version("torch")
    recipe = hashlib.sha256(repr((SUITE, PACKAGES, PATH, torch)).encode()).hexdigest()
    archive = cache_folder() / f"base-image-{recipe[:12]}.tar"
    with locked(archive):
        if not archive.exists():
            say(f"creating the base image of containers in {archive}")
            _make(archive, torch)
    return archive


def wheels(pins: Path, say: Say) -> Path:
    """Return an archive of the wheels of the package list and JupyterLab, without PyTorch; download them once."""
    lines = [line for file in (pins, pins.with_name("jupyter.txt")) for line in file.read_text().splitlines()]
    listed = [line for line in lines if "==" in line and not line.startswith("torch==")]
    archive = cache_folder() / f"wheels-{hashlib.sha256(repr(listed).encode()).hexdigest()[:12]}.tar"
    with locked(archive):
        if not archive.exists():
            say(f"fetching the wheels of {pins.name} to {archive}")
            with tempfile.TemporaryDirectory(dir=archive.parent) as scratch:
                folder = Path(scratch) / "wheels"
                subprocess.run([*PIP, "download", "--no-deps", "--dest", folder, *listed], check=True)
                with tarfile.open(fresh := Path(scratch) / "archive", "w") as tar:
                    tar.add(folder, "wheels")
                fresh.rename(archive)
    return archive


def _make(archive: Path, torch: str) -> None:
    with tempfile.TemporaryDirectory(dir=archive.parent) as scratch:
        root = Path(scratch) / "root"
        bootstrap(SUITE, root, PACKAGES, "--components=main,contrib")
        subprocess.run([*PIP, "download", "--no-deps", "--dest", root / "wheels", f"torch=={torch}"], check=True)
        install = f"{PYTHON}/bin/pip install --quiet --no-index --no-deps --no-compile /wheels/*.whl"
        script = f"python3 -m venv {PYTHON} && {install} && rm -r /wheels /var/cache/apt/* /var/lib/apt/lists/*"
        subprocess.run(["chroot", root, "sh", "-ec", script], check=True)
        layer = Path(scratch) / "layer.tar"
        subprocess.run(["tar", "--create", "--file", layer, "--numeric-owner", "--directory", root, "."], check=True)
        as_image(layer, fresh := Path(scratch) / "image.tar", NAME)
        fresh.rename(archive)


def as_image(layer: Path, archive: Path, image: str) -> None:
    """Wrap a root file system as the image of that name with one layer, as `docker save` writes them."""
    with layer.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": [PATH]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    data = json.dumps(config).encode()
    name = f"{hashlib.sha256(data).hexdigest()}.json"
    manifest = json.dumps([{"Config": name, "RepoTags": [image], "Layers": ["layer.tar"]}]).encode()
    with tarfile.open(archive, "w") as tar:
        for member, text in ((name, data), ("manifest.json", manifest)):
            member_info = tarfile.TarInfo(member)
            member_info.size = len(text)
            tar.addfile(member_info, io.BytesIO(text))
        tar.add(layer, "layer.tar")
