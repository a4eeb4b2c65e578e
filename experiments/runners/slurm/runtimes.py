"""Write the lines with which a job starts Python: in a virtual environment, an Apptainer image or a Docker image."""

import shlex
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from experiments.results import rendezvous
from experiments.results.provenance import git_commit
from experiments.runners.slurm.layout import Layout
from experiments.runners.slurm.profile import Profile, RuntimeName

NO_VARIABLES: Mapping[str, str] = MappingProxyType({})
WAIT_FOR_CHILD = ("while kill -0 $child 2> /dev/null; do wait $child; code=$?; done", "exit $code")
FORWARD_SIGNALS = "trap 'kill -TERM $child' TERM INT"
NODE_VARIABLES = (
    rendezvous.FOLDER_VARIABLE,
    rendezvous.ADDRESS_VARIABLE,
    rendezvous.RENDEZVOUS_VARIABLE,
    "OMP_NUM_THREADS",
)
"""Environment variables that are passed into the containers of a job with several nodes."""


class Runtime(ABC):
    """Bash lines that run commands with the Python of a profile.

    code: folder of the uploaded code; unused by runtimes whose image has the code.
    """

    uploads_code: ClassVar[bool] = True

    def __init__(self, profile: Profile, layout: Layout, code: str = "") -> None:
        self._profile = profile
        self._layout = layout
        self._code = code

    @property
    def shell(self) -> str:
        """Return the shell of scripts: if the profile has modules, a login shell, because others may lack `module`."""
        return "bash -l" if self._profile.modules else "bash"

    def setup(self) -> list[str]:
        """Return the first lines of a script, before the lines of ``script_lines``: the profile's setup and modules."""
        modules = self._profile.modules
        return [*self._profile.setup, *([f"module load {shlex.join(modules)} || exit 1"] if modules else [])]

    @abstractmethod
    def script_lines(self, command: str, nodes: int = 1, variables: Mapping[str, str] = NO_VARIABLES) -> list[str]:
        """Return the lines that run ``command``, stop it when the job is stopped, and exit with its exit code.

        nodes: number of nodes of the job; with several nodes, the command can connect to the other nodes. variables:
        environment variables to set in addition to those of the runtime.
        """

    def _variables(self) -> dict[str, str]:
        return cache_variables(self._layout.cache)

    def _variables_with_code(self) -> dict[str, str]:
        commit = {"TESTBED_COMMIT": commit} if (commit := git_commit()) else {}
        return {**self._variables(), **commit, "PYTHONPATH": self._code}


class Venv(Runtime):
    """The virtual environment that the profile names, or the Python of the loaded modules if it names none."""

    def setup(self) -> list[str]:
        environment = self._profile.environment
        activate = [f". {shlex.quote(environment)}/bin/activate || exit 1"] if environment else []
        return [*super().setup(), *activate]

    def script_lines(self, command: str, nodes: int = 1, variables: Mapping[str, str] = NO_VARIABLES) -> list[str]:
        exported = {**self._variables_with_code(), **variables}
        path = shlex.quote(exported.pop("PYTHONPATH"))
        assigned = " ".join(f"{name}={shlex.quote(value)}" for name, value in exported.items())
        export = f'export {assigned} PYTHONPATH={path}"${{PYTHONPATH:+:$PYTHONPATH}}"'
        return [export, FORWARD_SIGNALS, f"{command} & child=$!", *WAIT_FOR_CHILD]


class Apptainer(Runtime):
    """An Apptainer image without the code; the code's folder is mounted into it."""

    def script_lines(self, command: str, nodes: int = 1, variables: Mapping[str, str] = NO_VARIABLES) -> list[str]:
        image = self._profile.environment or ""
        options = _env_options({**self._variables_with_code(), **variables, "TESTBED_IMAGE": image})
        bind = f"--bind {shlex.quote(self._layout.folder)}"
        run = f"{self._profile.apptainer} {bind} {options} {shlex.quote(image)} {command}"
        return [FORWARD_SIGNALS, f"{run} & child=$!", *WAIT_FOR_CHILD]


class Docker(Runtime):
    """A Docker image with the code. The container gets the job's GPUs as CDI devices (Container Device Interface)."""

    uploads_code = False

    def script_lines(self, command: str, nodes: int = 1, variables: Mapping[str, str] = NO_VARIABLES) -> list[str]:
        image, folder = shlex.quote(self._profile.environment or ""), shlex.quote(self._layout.folder)
        options = _env_options({**container_variables(self._layout.cache), **variables})
        network = "".join(f" --env {name}" for name in NODE_VARIABLES) + " --network host" if nodes > 1 else ""
        return [
            'container=testbed-"$SLURM_JOB_ID"',
            'devices=(); for gpu in ${SLURM_JOB_GPUS//,/ }; do devices+=(--device "nvidia.com/gpu=$gpu"); done',
            f"image=$(docker image inspect --format '{{{{.Id}}}}' {image}) || exit 1",
            "trap 'docker rm --force \"$container\" > /dev/null 2>&1' TERM INT",
            'docker run --rm --init --name "$container" --user "$(id -u):$(id -g)" --ipc=host "${devices[@]}"'
            f'{network} --volume {folder}:{folder} {options} --env TESTBED_IMAGE="$image" {image} {command} & child=$!',
            *WAIT_FOR_CHILD,
        ]


RUNTIMES: dict[RuntimeName, type[Runtime]] = {"venv": Venv, "apptainer": Apptainer, "docker": Docker}


def cache_variables(cache: str) -> dict[str, str]:
    """Return the environment variables for rows that read downloaded files from ``cache`` and use no network."""
    return {"TESTBED_CACHE": cache, "HF_HOME": f"{cache}/huggingface", "HF_HUB_OFFLINE": "1"}


def container_variables(cache: str) -> dict[str, str]:
    """Return the environment variables of a container of the project's image in which ``cache`` is mounted."""
    return {**cache_variables(cache), "HOME": cache, "USER": "testbed"}


def _env_options(variables: Mapping[str, str]) -> str:
    return " ".join(f"--env {name}={shlex.quote(value)}" for name, value in variables.items())
