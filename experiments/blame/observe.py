"""Observe rows in an environment by prediction, with tiny models, or at full size on a GPU; store observations."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import ValidationError

from experiments.blame.environment import Environment, blame_folder
from experiments.blame.observation import Observation, observation_of, rejection_of
from experiments.errors import InputError
from experiments.prediction.as_result import evaluate_run
from experiments.results.provenance import code_sha256
from experiments.results.run_folder import RUN_FILE, RunFolder
from experiments.suites.suite import user_suite_file
from experiments.system.files import CODE_FOLDER, write_atomically
from experiments.system.processes import process_group
from provision.files import read_bytes

Method = Literal["prediction", "miniature", "gpu"]
SIZE_OF_METHOD = {"miniature": "tiny", "gpu": "full"}
UNWRAPPED_COLUMNS = "9999"
"""Width of the terminal in characters for the environment variable COLUMNS, so that no message is wrapped."""
EXIT_REJECTED = 2
"""Exit code of a run whose rows this software cannot run."""


class ObservationRequest(NamedTuple):
    """The rows to observe.

    compared: what to compare: the id of a statement, or a measured value as ROW/QUANTITY; None: the outcomes and all
    measured values of the rows.
    """

    suite: str
    rows: tuple[str, ...]
    card: str
    compared: str | None = None


def observe(request: ObservationRequest, method: Method, environment: Environment) -> Observation:
    """Return the observation of the rows in ``environment``. Reuses a stored observation if nothing has changed since.

    Raises InputError if the rows cannot be observed in the environment.
    """
    stored = _observation_path(request, method, environment)
    try:
        return Observation.model_validate_json(read_bytes(stored))
    except (OSError, ValidationError):
        pass
    found = _predict(request, environment) if method == "prediction" else _run(request, method, environment)
    stored.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(stored, found.model_dump_json(indent=2))
    return found


def _observation_path(request: ObservationRequest, method: Method, environment: Environment) -> Path:
    parts = [environment.name, method, request.suite, *request.rows, request.card, code_sha256()]
    if file := user_suite_file(request.suite):
        parts.append(file.read_text())
    return blame_folder() / "steps" / f"{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:16]}.json"


def _predict(request: ObservationRequest, environment: Environment) -> Observation:
    """Predict the rows in the environment; return the observation of the predictions."""
    arguments = {"suite_name": request.suite, "rows": request.rows, "card": request.card}
    code, last_line = _run_python(environment, ["-m", "experiments.blame.predicted", json.dumps(arguments)])
    if code:
        raise InputError(f"{environment.folder}: {last_line}")
    return Observation.model_validate_json(last_line)


def _run(request: ObservationRequest, method: Method, environment: Environment) -> Observation:
    """Run the rows and return their observation. The folder of the run is removed."""
    folder = blame_folder() / f"run-{environment.name}-{method}"
    shutil.rmtree(folder, ignore_errors=True)
    arguments = ["-m", "experiments", "run", request.suite, *(word for row in request.rows for word in ("--row", row))]
    arguments += ["--card", request.card, "--size", SIZE_OF_METHOD[method], "--no-predict", "--results", str(folder)]
    try:
        code, last_line = _run_python(environment, [*arguments, "--run-id", "step"])
        run = RunFolder(folder / "step")
        if code == EXIT_REJECTED:
            return rejection_of(request.rows, last_line)
        if not (run.path / RUN_FILE).exists():
            raise InputError(f"{environment.folder}: {last_line}")
        return observation_of(run.results(), evaluate_run(run.suite(), run).best)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run_python(environment: Environment, arguments: Sequence[str]) -> tuple[int, str]:
    """Run Python in the environment; return exit code and last line of output.

    The started Python process is killed if this process ends.
    """
    path = f"{environment.folder / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    variables = {**os.environ, "PATH": path, "PYTHONPATH": str(CODE_FOLDER), "COLUMNS": UNWRAPPED_COLUMNS}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with process_group([str(environment.python), *arguments], cwd=CODE_FOLDER, env=variables, **pipes) as process:
        out, err = process.communicate()
    text = (err if process.returncode else out).strip() or out.strip() or err.strip() or "no output"
    return process.returncode, text.splitlines()[-1]
