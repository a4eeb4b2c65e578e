"""Run each row in a separate container on this machine, with the same program as in a job on a leased node."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.errors import InputError
from experiments.results.run_folder import RunFolder
from experiments.results.schema import RESULT_FILE, SPEC_FILE
from experiments.runners.container.engine import FLAG, RUNNER_LABEL, gpu_requests, remove_container
from experiments.runners.local.resources import Allocation
from experiments.runners.local.row_process import NOTEBOOK_LOG
from experiments.runners.local.runner import LocalRunner
from experiments.runners.slurm.job_script import ROW_MODULE, STARTUP_LIMIT_S
from experiments.runners.slurm.runtimes import container_variables
from experiments.suites.choices import HUB, SYNTHETIC
from experiments.suites.row_spec import RowSpec
from experiments.system.files import cache_folder

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

ROW_LABEL = "llm-testbed.row"
"""Label of a row's container: the row's folder."""


@dataclass
class ContainerProcess:
    """The program in a container, with the methods of subprocess.Popen that LocalRunner calls."""

    container: "Container"

    @property
    def pid(self) -> int:
        """Return the program's process id on this machine."""
        return int(self.container.attrs["State"]["Pid"])

    def poll(self) -> int | None:
        """Return the exit code; None while the program runs; -SIGKILL if the container has been removed."""
        from docker.errors import NotFound

        try:
            self.container.reload()
        except NotFound:
            return -signal.SIGKILL
        state = self.container.attrs["State"]
        return int(state["ExitCode"]) if state["Status"] in ("exited", "dead") else None

    def wait(self) -> int:
        """Wait until the program has ended; return its exit code."""
        from docker.errors import NotFound

        try:
            return int(self.container.wait()["StatusCode"])
        except NotFound:
            return -signal.SIGKILL


class ContainerRunner(LocalRunner):
    """Runs rows in containers. The program in each container enforces the row's time limit.

    image: ID of the image. local, options: arguments of LocalRunner.
    """

    def __init__(self, client: "DockerClient", image: str, folder: RunFolder, *local: Any, **options: Any) -> None:
        super().__init__(folder, *local, **options)
        self._client, self._image = client, image
        self._row_grace_s = self._grace_s
        self._grace_s += STARTUP_LIMIT_S

    @cached_property
    def _docker_info(self) -> dict[str, Any]:
        """What Docker reports about itself."""
        return dict(self._client.info())

    @contextmanager
    def _prepare(self, *_: object) -> Iterator[None]:
        """Prepare nothing: the program in each container has its own warm process and compiles its extensions."""
        yield

    def _launch(self, folder: Path, allocation: Allocation) -> ContainerProcess:
        from docker.errors import DockerException

        spec = RowSpec.model_validate_json((folder / SPEC_FILE).read_bytes())
        command = ["python", "-m", ROW_MODULE, str(self._folder.path.resolve()), str(folder.resolve() / SPEC_FILE)]
        command += [self._worker, f"{self._row_grace_s:g}", "1"]
        try:
            created = self._client.containers.create(self._image, command, **self._options(spec, folder, allocation))
            created.start()
        except DockerException as problem:
            raise InputError(f"{FLAG}: {spec.row}: {getattr(problem, 'explanation', None) or problem}") from None
        return ContainerProcess(created)

    def _options(self, spec: RowSpec, folder: Path, allocation: Allocation) -> dict[str, Any]:
        """Return the options of a row's container. Folders have the same paths inside and outside of the container."""
        cache = cache_folder().resolve()
        cache.mkdir(parents=True, exist_ok=True)
        volumes = {str(path): {"bind": str(path), "mode": "rw"} for path in (cache, self._folder.path.resolve())}
        if spec.data not in (SYNTHETIC, HUB) and not Path(spec.data).resolve().is_relative_to(cache):
            volumes[str(Path(spec.data).resolve())] = {"bind": spec.data, "mode": "ro"}
        offline = spec.weights == "random" and spec.data != HUB
        environment = container_variables(str(cache)) | {"TESTBED_IMAGE": self._image}
        return {
            "name": f"testbed-{spec.row}-{os.getpid()}",
            "labels": {ROW_LABEL: str(folder.resolve()), RUNNER_LABEL: str(os.getpid())},
            "user": f"{os.getuid()}:{os.getgid()}",
            "init": True,
            "ipc_mode": "host",
            "hostname": "localhost",
            "network_mode": "none" if offline else "bridge",
            "environment": environment if offline else environment | {"HF_HUB_OFFLINE": "0"},
            "volumes": volumes,
            "cpuset_cpus": ",".join(map(str, self._cores(allocation))),
            "device_requests": gpu_requests(self._docker_info, [gpu.index for gpu in allocation.gpus]),
        }

    def _cores(self, allocation: Allocation) -> list[int]:
        """Return the numbers of the CPU cores that the row may use."""
        cores = sorted(os.sched_getaffinity(0))
        per_part = allocation.cores // len(allocation.part_numbers)
        return [
            core for number in allocation.part_numbers for core in cores[number * per_part : (number + 1) * per_part]
        ]

    def _end_processes(self, folder: Path) -> list[int]:
        """Remove the row's container; if the row has no result, first write the container's output to notebook.log.

        Returns no process ids, because no process survives its container.
        """
        label = f"{ROW_LABEL}={folder.resolve()}"
        for container in self._client.containers.list(all=True, ignore_removed=True, filters={"label": label}):
            if not (folder / RESULT_FILE).exists():
                (folder / NOTEBOOK_LOG).write_bytes(container.logs())
            remove_container(container)
        return []
