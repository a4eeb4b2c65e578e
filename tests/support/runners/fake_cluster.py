"""A fake cluster on this machine: sbatch, squeue and scancel are scripts, and no artifact is downloaded."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from experiments.results.schema import LOG_FILE, PROGRESS_FILE, RESULT_FILE, Result, read_result
from experiments.runners.slurm.job_script import JobSpec
from experiments.runners.slurm.layout import ENDED_FILE, SCRIPT_FILE, STARTED_FILE, Layout
from experiments.runners.slurm.profile import Profile
from experiments.suites.row_spec import RowSpec
from provision.errors import ConnectionDropped
from provision.ssh.shell import CommandResult, LocalShell
from tests.support.results import in_memory
from tests.support.runners import rows
from tests.support.runners.fake_view import RecordingView

PROFILE = Profile(
    name="x", title="X", cpus_per_node=8, memory_per_node_gib=32, gpu="NVIDIA T4", gpu_memory_gib=15, gpus_per_node=2
)
SBATCH = f"""\
if [ -e {{folder}}/rejected ]; then echo "no such account" >&2; exit 1; fi
folder=$(dirname "$2"); name=$(basename "$folder"); row=$(dirname "$(dirname "$folder")")/lab/${{{{name%%-*}}}}
mkdir -p "$row"; cp {{folder}}/result-of-a "$row/{RESULT_FILE}"
echo 8 > "$folder/{STARTED_FILE}"; echo 0 > "$folder/{ENDED_FILE}"
echo "$name" >> {{folder}}/submitted; echo "8;x"
"""
"""The script sbatch: it accepts a job, which ends at once with a result."""
SCRIPTS = {"sbatch": SBATCH, "squeue": "cat {folder}/queue\n", "scancel": 'echo "$@" >> {folder}/cancelled\n'}


class DroppingShell(LocalShell):
    """A shell on this machine whose connection drops in each command that the caller has not declared repeatable.

    The commands that begin with one of ONCE may run only once, so their connection does not drop.
    """

    ONCE = ("sbatch ", "fresh=")

    def run(self, command: str, **options: Any) -> CommandResult:
        if not options.get("repeatable") and not command.startswith(self.ONCE):
            raise ConnectionDropped("cut")
        return super().run(command, **options)


class FakeCluster:
    """A fake cluster whose queue is the file ``queue``.

    download_failure: why a download failed. artifacts: artifacts by row. leased: whether the nodes are leased.
    """

    def __init__(self, folder: Path) -> None:
        self.home, self.download_failure, self.leased = folder, "", True
        self.artifacts: dict[str, tuple[str, ...]] = {}
        self.shell, self.profile, self.layout = LocalShell(), PROFILE, Layout(str(folder))
        self.scripts = SimpleNamespace(row_script=lambda job, run_id, name, comment: f"{name}\n{comment}\n")
        self.staging = SimpleNamespace(
            artifacts=lambda spec: self.artifacts.get(spec.row, ()),
            begin=lambda spec: (),
            update=lambda jobs, output: None,
            status_commands=lambda specs: [],
            pending_downloads=lambda spec: "the weights",
            download_failure=lambda spec: self.download_failure or None,
        )
        self.view = RecordingView()
        self.run = rows.folder(folder / "here", "a", "b")
        self.run_there = folder / self.run.read_run().run_id
        self.queue()
        (folder / "result-of-a").write_text(in_memory.result("a", memory={"peak_gib": 2.0}).model_dump_json())
        for name, body in SCRIPTS.items():
            (folder / name).write_text("#!/bin/sh\n" + body.format(folder=folder))
            (folder / name).chmod(0o755)
        os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"

    def prepare(self, run: object) -> None:
        """Upload nothing."""

    def queue(self, *lines: str, name: str = "run/lab/a", comment: str = "a comment") -> None:
        """Put jobs into the queue, each as 'id|state|reason'."""
        (self.home / "queue").write_text("".join(f"{line}|{name}|{comment}\n" for line in lines))

    def write(self, job: JobSpec, name: str, text: str) -> None:
        """Write a file of the row, or of its job."""
        of_row = name in (LOG_FILE, PROGRESS_FILE, RESULT_FILE)
        path = self.run_there / (job.row_folder if of_row else job.folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def script_of(self, job: JobSpec) -> str:
        """Return the script of a submitted job."""
        return (self.run_there / job.folder / SCRIPT_FILE).read_text()

    def words_in(self, name: str) -> list[str]:
        """Return what a script has recorded in this file: ``submitted`` jobs, or the arguments of scancel."""
        path = self.home / name
        return path.read_text().split() if path.exists() else []

    def row_folder(self, row: str = "a") -> Path:
        """Return the folder of a row on this machine."""
        return self.run.row_folder(rows.spec(row))

    def result_of(self, row: str = "a") -> Result:
        """Return the result of a row on this machine."""
        return read_result(self.row_folder(row) / RESULT_FILE)


def job_of(spec: RowSpec, attempt: str = "abcdefgh") -> JobSpec:
    """Return an attempt to run a row."""
    return JobSpec(spec, attempt, "some.worker", 120.0)
