"""Jupyter on a leased machine: in a container of the image, on the machine's loopback alone, reached through a tunnel.

The token travels as the input of a command into a file that only its owner may read, is Jupyter's environment, and the
file is gone once Jupyter runs; it is in no command line.
"""

import secrets
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.error import URLError
from urllib.request import urlopen

from experiments.runners.targets import image_of
from provision.errors import CommandFailed
from provision.models import ImageVariant
from provision.ssh.shell import Shell

CONTAINER = "testbed-notebook"
FOLDER = "llm-testbed/notebooks"
CACHE = "llm-testbed/cache"
COLAB = "https://colab.research.google.com"
UP_S = 60.0
ASK_S = 0.5
PORTS = range(20_000, 30_000)


@contextmanager
def served(shell: Shell, opened: str | None = None, image_variant: ImageVariant = "current") -> Iterator[str]:
    """The address here, token included, of a Jupyter there that ends with the body; ``opened`` is a notebook of FOLDER.

    CommandFailed with Jupyter's last words where it does not start.
    """
    token, port = secrets.token_hex(24), secrets.choice(PORTS)
    path = f"lab/tree/{opened}" if opened else "lab"
    try:
        shell.run(_start(image_of(image_variant), port), input=f"JUPYTER_TOKEN={token}\n".encode())
        with shell.forward(port) as local:
            _wait(shell, local)
            yield f"http://localhost:{local}/{path}?token={token}"
    finally:
        shell.run(f"docker rm --force {CONTAINER}", check=False, repeatable=True)


def _start(image: str, port: int) -> str:
    """The command that starts it; the token's line is its input."""
    own = {
        "ip": "127.0.0.1",
        "port": str(port),
        "ServerApp.port_retries": "0",
        "ServerApp.allow_origin": COLAB,
        "ServerApp.allow_credentials": "True",
    }
    jupyter = shlex.join(["jupyter", "lab", "--no-browser", *(f"--{name}={value}" for name, value in own.items())])
    return "\n".join(
        [
            "set -e",
            f"mkdir -p {FOLDER} {CACHE}",
            "secret=$(mktemp)",
            "trap 'rm -f \"$secret\"' EXIT",
            'cat > "$secret"',
            f"docker rm --force {CONTAINER} > /dev/null 2>&1 || true",
            "gpus=; if command -v nvidia-smi > /dev/null; then gpus='--device nvidia.com/gpu=all'; fi",
            f"docker run --detach --init --name {CONTAINER} --network=host --ipc=host $gpus"
            ' --user "$(id -u):$(id -g)" --env-file "$secret"'
            f' --volume "$PWD/{FOLDER}:/notebooks" --volume "$PWD/{CACHE}:/cache" --env HOME=/cache'
            f" --workdir /notebooks {shlex.quote(image)} {jupyter}",
        ]
    )


def _wait(shell: Shell, local: int) -> None:
    """Until Jupyter answers."""
    until = time.monotonic() + UP_S
    while time.monotonic() < until:
        try:
            urlopen(f"http://127.0.0.1:{local}/api", timeout=ASK_S).close()
            return
        except (URLError, OSError):
            running = f"docker container inspect --format '{{{{.State.Running}}}}' {CONTAINER}"
            if shell.run(running, check=False).out.strip() != "true":
                break
            time.sleep(ASK_S)
    said = shell.run(f"docker logs --tail 1 {CONTAINER} 2>&1", check=False).out.strip()
    raise CommandFailed(f"{shell.where}: Jupyter does not start: {said or 'it says nothing'}", 1)
