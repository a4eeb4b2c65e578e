"""Run Jupyter on this machine, bound to the loopback interface. The token is passed in the environment only."""

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from experiments.errors import InputError
from experiments.runners.notebook_server import PORTS, notebook_url, server_options, wait_for_answer
from experiments.system.files import CODE_FOLDER
from experiments.system.signals import die_with_parent


@contextmanager
def serve_local_notebooks(
    folder: Path, notebook_file: str | None = None
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run Jupyter for the notebooks in ``folder`` while the body of the with statement runs.

    Yields the URL, which includes the token, and the process. notebook_file: notebook in ``folder`` that the URL opens.
    Raises InputError if JupyterLab is not installed, or if Jupyter does not start.
    """
    if find_spec("jupyterlab") is None:
        raise InputError(f"--site local: JupyterLab is missing; install it: {sys.executable} -m pip install jupyterlab")
    token, port = secrets.token_hex(24), secrets.choice(PORTS)
    paths = os.pathsep.join(filter(None, (str(CODE_FOLDER), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "jupyterlab", *server_options(port), "--ServerApp.log_level=ERROR"]
    if os.geteuid() == 0:
        command.append("--allow-root")
    environment = {**os.environ, "JUPYTER_TOKEN": token, "PYTHONPATH": paths}
    jupyter = subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent
    )
    try:
        if not wait_for_answer(port, lambda: jupyter.poll() is None):
            raise InputError("--site local: Jupyter does not start; its messages are above")
        yield notebook_url(port, notebook_file, token), jupyter
    finally:
        jupyter.terminate()
        jupyter.wait()
