"""Jupyter on this machine, bound to the loopback interface, with a token that is passed in the environment only."""

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from experiments.errors import InputError
from experiments.runners.notebook_server import POLL_S, PORTS, START_TIMEOUT_S
from experiments.system.files import CODE
from experiments.system.signals import die_with_parent


@contextmanager
def served_here(folder: Path, opened: str | None = None) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run Jupyter for the notebooks in ``folder`` while the body of the with statement runs.

    Yields the URL, which includes the token, and the process. opened: notebook in ``folder`` that the URL opens. Raises
    InputError without JupyterLab, and if Jupyter does not start.
    """
    if find_spec("jupyterlab") is None:
        raise InputError(f"--site local: JupyterLab is missing; install it: {sys.executable} -m pip install jupyterlab")
    token, port = secrets.token_hex(24), secrets.choice(PORTS)
    paths = os.pathsep.join(filter(None, (str(CODE), os.environ.get("PYTHONPATH"))))
    options = {"ip": "127.0.0.1", "port": str(port), "ServerApp.port_retries": "0", "ServerApp.log_level": "ERROR"}
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        *(f"--{name}={one}" for name, one in options.items()),
    ]
    if os.geteuid() == 0:
        command.append("--allow-root")
    environment = {**os.environ, "JUPYTER_TOKEN": token, "PYTHONPATH": paths}
    jupyter = subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent
    )
    try:
        _wait_until_ready(jupyter, port)
        yield f"http://localhost:{port}/{f'lab/tree/{opened}' if opened else 'lab'}?token={token}", jupyter
    finally:
        jupyter.terminate()
        jupyter.wait()


def _wait_until_ready(jupyter: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and jupyter.poll() is None:
        try:
            urlopen(f"http://127.0.0.1:{port}/api", timeout=POLL_S).close()
            return
        except (URLError, OSError):
            time.sleep(POLL_S)
    raise InputError("--site local: Jupyter does not start; its messages are above")
