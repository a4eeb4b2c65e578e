"""Runs of rows with the fake worker, on this machine or on the cluster, with the same interface."""

import threading
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest

from experiments.runners.local import row_process
from experiments.runners.local.runner import LocalRunner
from experiments.runners.slurm.cluster import Cluster as Rows
from experiments.runners.slurm.runner import SlurmRunner
from experiments.system.processes import find_tagged
from provision.errors import ConnectionDropped
from provision.ssh.shell import Shell
from provision.ssh.ssh_shell import SshShell
from tests.support.processes.waiting import wait_for
from tests.support.runners import fake_worker
from tests.support.runners import rows as sample_rows
from tests.support.runners.fake_view import RecordingView
from tests.testbed.slurm.cluster import Cluster
from tests.testbed.slurm.conftest import profile_of

GRACE_S = 4.0
HANG_S = 20


class Harness:
    """Runs of a suite 'lab' into ``path``; ``runner`` makes a runner for rows with the given behavior."""

    choices: ClassVar = {"weights": "random", "data": "synthetic"}

    def __init__(self, path: Path) -> None:
        self.path, self.view = path, RecordingView()
        self.folder = sample_rows.folder(path / path.name, *"abcdefg", run_id=path.name, **self.choices)

    @property
    def journal(self) -> Path:
        return self.path / "journal"

    def start_count(self, row: str) -> int:
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return sum(line.startswith(f"{row} ") and len(line.split()) == 3 for line in lines)

    def outcomes(self) -> dict[str, str]:
        return {row: result.outcome for row, result in self.folder.results().items()}

    def files(self, row: str) -> str:
        """Return the ends of all files of a row and of its jobs, so that an unexpected outcome can be explained."""
        found = (path for top in self.folders() for path in sorted(top.rglob("*")) if path.is_file())
        row_logs = (path for path in found if path.parent.name.partition("-")[0] == row)
        return "\n".join(f"{path}:\n{path.read_text(errors='replace')[-2000:]}" for path in row_logs)

    def folders(self) -> list[Path]:
        """Return the folders with files of rows."""
        return [self.folder.path]

    def run(self, rows: str, limit_s: int = 60, **behavior: str) -> None:
        """Run rows; row g has a shorter time limit."""
        limits = {row: HANG_S if row == "g" else limit_s for row in rows}
        specs = [sample_rows.spec(row, size="tiny", time_limit_s=limits[row], **self.choices) for row in rows]
        self.runner(behavior).run(sample_rows.rows_to_run(*specs))

    def runner(self, behavior: dict[str, str]) -> "LocalRunner | SlurmRunner":
        raise NotImplementedError

    def running_processes(self) -> list[psutil.Process]:
        """Return the processes of rows that still run."""
        raise NotImplementedError


class LocalHarness(Harness):
    cpus = 2

    def __init__(self, path: Path, patch: pytest.MonkeyPatch) -> None:
        super().__init__(path)
        self._patch = patch

    def runner(self, behavior: dict[str, str]) -> LocalRunner:
        self._patch.setenv("FAKE", ",".join(f"{row}={action}" for row, action in behavior.items()))
        self._patch.setenv("FAKE_JOURNAL", str(self.journal))
        return LocalRunner(self.folder, sample_rows.node(cpus=self.cpus), 64.0, self.view, fake_worker.MODULE, GRACE_S)

    def running_processes(self) -> list[psutil.Process]:
        return [one for row in "abcdefg" for one in row_process.tagged_processes(self.folder.row_folder_named(row))]


class SlurmHarness(Harness):
    def __init__(self, path: Path, cluster: Cluster, shell: Shell | None = None, **profile: object) -> None:
        super().__init__(path)
        self.cluster, self.shell = cluster, shell or SshShell(cluster.login(), connect_limit_s=2)
        self._profile = profile
        self.options: dict[str, Any] = {}

    @property
    def journal(self) -> Path:
        return self.cluster.home / f"journal-{self.path.name}"

    def folders(self) -> list[Path]:
        return [*super().folders(), self.cluster.home]

    def runner(self, behavior: dict[str, str]) -> SlurmRunner:
        behaviors = ",".join(f"{row}={action}" for row, action in behavior.items())
        profile = profile_of(self.cluster, FAKE=behaviors, FAKE_JOURNAL=str(self.journal))
        rows = Rows(self.shell, profile.model_copy(update=self._profile))
        return SlurmRunner(self.folder, rows, self.view, fake_worker.MODULE, GRACE_S, **self.options)

    def running_processes(self) -> list[psutil.Process]:
        home = str(self.cluster.home)
        return [
            one
            for one in find_tagged(row_process.ROW_VARIABLE)
            if one.environ()[row_process.ROW_VARIABLE].startswith(home)
        ]

    def queue(self) -> dict[str, str]:
        """Return the ids of unfinished jobs by row."""
        lines = self.cluster.query("squeue", "--noheader", "--format=%i %j").splitlines()
        jobs = [line.split() for line in lines]
        return {name.rpartition("/")[2]: number for number, name in jobs if name.startswith(f"{self.path.name}/")}

    def close(self) -> None:
        self.cluster.query("scancel", "--user", self.cluster.user, check=False)
        self.shell.close()


def call_when(condition, action) -> threading.Thread:
    """Call ``action`` in a thread as soon as ``condition`` is true; return the thread."""

    def wait() -> None:
        wait_for(condition)
        action()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


class DropsAfterSubmit(SshShell):
    """A connection that drops once, after sbatch has submitted a job and before its output has arrived."""

    cuts = 1

    def run(self, command, **options):
        done = super().run(command, **options)
        if command.startswith("sbatch") and self.cuts:
            self.cuts -= 1
            raise ConnectionDropped("cut")
        return done
