"""Run Jupyter on a leased machine, in a container of the image, and reach it through an SSH tunnel.

Jupyter is bound to the loopback interface of the leased machine.

The token never appears on a command line. A command reads it from its input and writes it to a file that only its
owner may read. The container gets it as an environment variable. The file is removed once Jupyter runs.
"""

import secrets
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.error import URLError
from urllib.request import urlopen

from experiments.runners.container.image import image_name
from provision.choices import ImageVariant
from provision.errors import CommandFailed
from provision.ssh.shell import Shell

CONTAINER = "testbed-notebook"
NOTEBOOK_FOLDER = "llm-testbed/notebooks"
NOTEBOOKS_FETCHED = "llm-testbed/notebooks-fetched"
"""File that is written after each download of the notebooks to the user's computer.

If the file is newer than all notebooks, the user's computer has the current version of each notebook.
"""
CACHE_FOLDER = "llm-testbed/cache"
COLAB = "https://colab.research.google.com"
START_TIMEOUT_S = 60.0
POLL_S = 0.5
PORTS = range(20_000, 30_000)


@contextmanager
def serve_notebooks(
    shell: Shell, notebook_file: str | None = None, image_variant: ImageVariant = "current"
) -> Iterator[str]:
    """Run Jupyter on the machine of ``shell`` while the body of the with statement runs.

    Yields the local URL, which includes the token. notebook_file: notebook in NOTEBOOK_FOLDER that the URL opens.
    Raises CommandFailed with the last line of Jupyter's log if Jupyter does not start.
    """
    token, port = secrets.token_hex(24), secrets.choice(PORTS)
    try:
        shell.run(_start_command(image_name(image_variant), port), input=f"JUPYTER_TOKEN={token}\n".encode())
        with shell.forward(port) as local_port:
            _wait_until_ready(shell, local_port)
            yield notebook_url(local_port, notebook_file, token)
    finally:
        shell.run(f"docker rm --force {CONTAINER}", check=False, repeatable=True)


def _start_command(image: str, port: int) -> str:
    """Return the command that starts Jupyter. The command reads an environment file with the token from its input."""
    colab = [f"--ServerApp.allow_origin={COLAB}", "--ServerApp.allow_credentials=True"]
    jupyter = shlex.join(["jupyter", "lab", *server_options(port), *colab])
    return "\n".join(
        [
            "set -e",
            f"mkdir -p {NOTEBOOK_FOLDER} {CACHE_FOLDER}",
            "secret=$(mktemp)",
            "trap 'rm -f \"$secret\"' EXIT",
            'cat > "$secret"',
            f"docker rm --force {CONTAINER} > /dev/null 2>&1 || true",
            "gpus=; if command -v nvidia-smi > /dev/null; then gpus='--device nvidia.com/gpu=all'; fi",
            f"docker run --detach --init --name {CONTAINER} --network=host --ipc=host $gpus"
            ' --user "$(id -u):$(id -g)" --env-file "$secret"'
            f' --volume "$PWD/{NOTEBOOK_FOLDER}:/notebooks" --volume "$PWD/{CACHE_FOLDER}:/cache" --env HOME=/cache'
            f" --workdir /notebooks {shlex.quote(image)} {jupyter}",
        ]
    )


def server_options(port: int) -> list[str]:
    """Return options of Jupyter that make it reachable only from its own machine."""
    return ["--no-browser", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0"]


def notebook_url(port: int, notebook_file: str | None, token: str) -> str:
    """Return the URL of Jupyter at a local port. notebook_file: the notebook to open; None: the file list."""
    return f"http://localhost:{port}/{f'lab/tree/{notebook_file}' if notebook_file else 'lab'}?token={token}"


def wait_for_answer(port: int, is_running: Callable[[], bool]) -> bool:
    """Wait until Jupyter answers at a local port; return False if it stops or takes longer than START_TIMEOUT_S.

    is_running: returns whether Jupyter still runs.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            urlopen(f"http://127.0.0.1:{port}/api", timeout=POLL_S).close()
            return True
        except (URLError, OSError):
            if not is_running():
                return False
            time.sleep(POLL_S)
    return False


def _wait_until_ready(shell: Shell, local_port: int) -> None:
    state = f"docker container inspect --format '{{{{.State.Running}}}}' {CONTAINER}"
    if wait_for_answer(local_port, lambda: shell.run(state, check=False).out.strip() == "true"):
        return
    log = shell.run(f"docker logs --tail 1 {CONTAINER} 2>&1", check=False).out.strip()
    raise CommandFailed(f"{shell.where}: Jupyter does not start: {log or 'its log is empty'}", 1)
