"""A real Docker daemon with a separate socket, from Debian's package, independent of any Docker on this machine.

The daemon has no network and no GPUs. Docker's programs are extracted from packages, not installed, and cached.
"""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.runners.container.image import image_name, origin_label, role_variables
from experiments.system.files import cache_folder
from experiments.system.processes import process_group
from provision.configure.build_context import write_build_context
from tests.support.processes.waiting import wait_until_up
from tests.testbed.node.base_image import NAME as BASE
from tests.testbed.node.image import SUITE, UNNAMED_KEYRING, Say, archive_key
from tests.testbed.openstack.environment import locked

if TYPE_CHECKING:
    from docker import DockerClient

DEBIAN, ENGINE, BUILDX = "bookworm", "docker.io,tini", "docker-buildx"
PLUGIN = "usr/libexec/docker/cli-plugins/docker-buildx"
DOCKERFILE = f"""FROM {BASE}
ENV PATH=/usr/local/bin:/usr/bin:/bin
COPY provision /opt/llm-testbed/provision
COPY experiments /opt/llm-testbed/experiments
COPY python /usr/local/bin/python
"""


def programs(say: Say) -> Path:
    """Return a folder with Docker's engine and buildx, extracted now if it is not cached."""
    recipe = hashlib.sha256(repr((DEBIAN, ENGINE, SUITE, BUILDX)).encode()).hexdigest()
    folder = cache_folder() / f"docker-{recipe[:12]}"
    with locked(folder):
        if not folder.exists():
            say(f"extracting Docker to {folder}")
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                _extract(Path(scratch)).rename(folder)
    return folder


def _extract(scratch: Path) -> Path:
    root, ubuntu, keyring = scratch / "root", scratch / "ubuntu", scratch / "keyring.gpg"
    keyring.write_bytes(archive_key(scratch))
    extract = ["mmdebstrap", "--quiet", "--variant=extract"]
    subprocess.run([*extract, f"--include={ENGINE}", DEBIAN, root], check=True)
    trusted = [*UNNAMED_KEYRING, f"--keyring={keyring}", "--components=main,universe"]
    subprocess.run([*extract, *trusted, f"--include={BUILDX}", SUITE, ubuntu], check=True)
    (root / PLUGIN).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(ubuntu / PLUGIN, root / PLUGIN)
    (root / "usr/bin/docker-init").unlink(missing_ok=True)
    (root / "usr/bin/docker-init").symlink_to("tini-static")
    return root


@contextmanager
def daemon(say: Say) -> Iterator[dict[str, str]]:
    """Start a daemon in a new folder; yield the environment variables with which programs use it."""
    found = programs(say)
    with tempfile.TemporaryDirectory(prefix="docker-", ignore_cleanup_errors=True) as scratch:
        plugins = Path(scratch) / "config" / "cli-plugins"
        plugins.mkdir(parents=True)
        (plugins / BUILDX).symlink_to(found / PLUGIN)
        socket, log = f"unix://{scratch}/socket", Path(scratch) / "log"
        path = f"{found}/usr/bin:{found}/usr/sbin:{os.environ['PATH']}"
        folders = [f"--data-root={scratch}/data", f"--exec-root={scratch}/exec", f"--pidfile={scratch}/pid"]
        command = ["dockerd", *folders, "--bridge=none", "--iptables=false", f"--host={socket}"]
        with (
            log.open("wb") as output,
            process_group(command, env={**os.environ, "PATH": path}, stdout=output, stderr=output) as process,
        ):
            variables = {"DOCKER_HOST": socket, "DOCKER_CONFIG": f"{scratch}/config", "PATH": path}
            wait_until_up("dockerd", process, log, lambda: _answers(variables))
            yield variables
            process.terminate()
            process.wait()


def _answers(variables: Mapping[str, str]) -> bool:
    return subprocess.run(["docker", "info"], env={**os.environ, **variables}, capture_output=True).returncode == 0


def load_image(client: "DockerClient", base_archive: Path) -> str:
    """Build a substitute of the project's image, with this environment's packages; return its ID.

    The image has the code and label of the project's image, so that `testbed run` accepts it. The packages are not in
    the image, but in the cache folder, which is mounted into the containers of rows.
    """
    with base_archive.open("rb") as archive:
        client.images.load(archive)
    (packages,) = [path for path in sys.path if path.endswith("site-packages")]
    python = f"#!/bin/sh\nexport PYTHONPATH=/opt/llm-testbed:{packages}${{PYTHONPATH:+:$PYTHONPATH}}\n"
    files = {"Dockerfile": DOCKERFILE, "python": f'{python}exec /usr/bin/python3.11 "$@"\n'}
    with tempfile.TemporaryDirectory() as scratch:
        context = Path(scratch) / "context.tar.gz"
        write_build_context(context)
        with tarfile.open(context) as code, tarfile.open(whole := Path(scratch) / "whole.tar", "w") as target:
            for member in code:
                target.addfile(member, code.extractfile(member))
            for name, text in files.items():
                added = tarfile.TarInfo(name)
                added.size, added.mode = len(text), 0o755
                target.addfile(added, io.BytesIO(text.encode()))
        labels = {role_variables("vars")["images_label"]: origin_label("current", context)}
        with whole.open("rb") as file:
            built, _ = client.images.build(
                fileobj=file, custom_context=True, tag=image_name("current"), labels=labels, rm=True
            )
    return str(built.id)
