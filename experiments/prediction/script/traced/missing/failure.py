"""Why a script failed: something is missing, the simulated GPU has a limit, or the script has an error of its own."""

import getpass
import os
import re
import subprocess
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.prediction.phantom.library import Phantom
from experiments.prediction.script.record import SCRIPT_FAILED
from experiments.prediction.script.traced.missing import substitutes
from experiments.prediction.script.traced.missing.network import connection
from experiments.prediction.times.operations import HOST_READS, parse
from experiments.system.files import CODE_FOLDER

PREDICTION_CODE = CODE_FOLDER / "experiments" / "prediction"
LIMITS = re.compile(
    "|".join(
        (
            "dummy base class",
            "CUDA_HOME environment variable is not set",
            "doesn't have NCCL built in",
            "not compiled with CUDA",
            "not linked with support for cuda",
            "without ATen_cuda",
            r"module 'torch\._C[\w.]*' has no attribute",
            "0 active drivers",
            "libcuda|libcudart|CUDA driver",
            "undefined symbol|cannot open shared object file",
            r"Could not run '\S+' with arguments from the 'CUDA",
        )
    )
)
"""Messages of PyTorch and Triton about parts of a real GPU, its driver or PyTorch's CUDA build."""
GPU_PROGRAMS = ("nvidia-smi", "nvcc", "rocm-smi")
NO_KEYBOARD = "EOF when reading a line"
"""Message of Python's input() if there is no keyboard."""
NETWORK_ERRORS = {
    "ConnectionError",
    "ConnectError",
    "ConnectTimeout",
    "URLError",
    "gaierror",
    "HfHubHTTPError",
    "LocalEntryNotFoundError",
    "OfflineModeIsEnabled",
}
UNKNOWN_TYPES = {"Float", "Double", "Half", "BFloat16", "Bool"}
"""Types of tensors whose values can be unknown; those of type Bool can result from comparisons."""
UNKNOWN_HINT = "values of floating-point tensors read as 0 on the simulated GPU, and comparisons of them as false"


def describe_failure(error: BaseException, code: int, phantom: Phantom) -> str:
    """Return a line that names the cause of the script's failure, and what to do if something is missing."""
    causes = list(_causes(error))
    explanations = [
        *map(substitutes.explanation, causes),
        *(_describe_missing(one) or _describe_limit(one) for one in causes),
    ]
    if cause := next(filter(None, explanations), ""):
        return cause
    hints = [UNKNOWN_HINT] if _reads_unknown_values(phantom) else []
    return "; ".join([SCRIPT_FAILED.format(f"exit code {code}"), *hints, *substitutes.notes()])


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and its causes. If the script handled an error by an exit, the cause is this error."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (seen.__context__ if isinstance(seen, SystemExit) else None)


def _describe_missing(error: BaseException) -> str:
    """Return what is missing and what to do, "" if the error has another cause."""
    names = {one.__name__ for one in type(error).__mro__}
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"missing: the Python module '{error.name}'; install its package, or add its folder to PYTHONPATH"
    is_known = str(error).startswith("cannot import name") or LIMITS.search(str(error))
    if isinstance(error, ImportError) and not error.__cause__ and not is_known:
        return f"missing: a Python package: {_first_line(error)}"
    if isinstance(error, EOFError) and (str(error) == NO_KEYBOARD or _raised_in(error) == Path(getpass.__file__)):
        return "missing: an answer to a question (input or getpass); let the script run without asking"
    if names & NETWORK_ERRORS:
        if file := _hub_file(error):
            return f"missing: {file} ({_network_problem(error)}); download it once with network"
        return f"missing: a server or the network ({_network_problem(error)}), which the script needs"
    if (file := _missing_file(error)) and Path(file).name not in GPU_PROGRAMS:
        if _raised_in(error) == Path(subprocess.__file__):
            return f"missing: the program {file}; install it"
        return f"missing: the file {file}; create it, or run the command in the folder that has it"
    return ""


def _missing_file(error: BaseException) -> str:
    """Return the path that the error names as missing, "" if there is none."""
    return os.fsdecode(error.filename) if isinstance(error, FileNotFoundError) and error.filename else ""


def _hub_file(error: BaseException) -> str:
    """Return the file or repository of the Hugging Face hub that the script tried to load, "" if there is none."""
    frame, repository = error.__traceback__, ""
    while frame:
        values: dict[str, Any] = frame.tb_frame.f_locals
        if {"repo_id", "filename"} <= values.keys():
            return f"the file {values['filename']} of '{values['repo_id']}' on the Hugging Face hub"
        repository = repository or str(values.get("repo_id") or "")
        frame = frame.tb_next
    return f"the files of '{repository}' on the Hugging Face hub" if repository else ""


def _network_problem(error: BaseException) -> str:
    """Return what is wrong with the network: that the hub cannot be reached, or else the first line of the error."""
    return connection.state if connection.unreachable_reason else _first_line(error)


def _describe_limit(error: BaseException) -> str:
    """Return that the simulated GPU does not support what the script does, "" if the error has another cause."""
    if Path(_missing_file(error)).name in GPU_PROGRAMS or LIMITS.search(str(error)) or _raised_by_simulation(error):
        return f"the simulated GPU does not support this: {type(error).__name__}: {_first_line(error)}"
    return ""


def _raised_by_simulation(error: BaseException) -> bool:
    return _raised_in(error).is_relative_to(PREDICTION_CODE)


def _raised_in(error: BaseException) -> Path:
    """Return the file with the code that raised the error."""
    frames = traceback.extract_tb(error.__traceback__)
    return Path(frames[-1].filename if frames else "")


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _reads_unknown_values(phantom: Phantom) -> bool:
    """Return whether the host read a value from the GPU that can be unknown."""
    for key in phantom.operations(0, phantom.operation_count()):
        operation = parse(key)
        reads = HOST_READS.match(operation.name) or operation.copies_between_host_and_gpu
        if reads and operation.host_reads and any(one["type"] in UNKNOWN_TYPES for one in operation.tensors):
            return True
    return False
