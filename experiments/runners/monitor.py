"""What runs on machines right now: their GPUs, whose processes use them, and the rows that run or wait there."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic import ValidationError
from rich.console import Group
from rich.table import Table

from experiments.results.schema import PROGRESS_FILE, Progress
from experiments.results.wording import clock
from experiments.runners.local.row_process import ROW_VARIABLE
from experiments.runners.slurm import queue
from experiments.runners.targets import Seen
from provision.errors import NotReached
from provision.hardware import nvidia_smi
from provision.ssh.shell import Shell

GPUS = f"""\
command -v nvidia-smi > /dev/null || exit 0
{nvidia_smi.STATUS} | sed 's/^/gpu, /'
nvidia-smi --query-compute-apps=gpu_uuid,pid --format=csv,noheader | tr -d , | while read -r gpu pid; do
  row=$(tr '\\0' '\\n' < /proc/$pid/environ 2> /dev/null | sed -n 's/^{ROW_VARIABLE}=//p')
  echo "process, $gpu, $pid, $row"
done"""


@dataclass(frozen=True)
class GpuSeen:
    """A GPU at one moment: utilization in percent, memory in GiB, temperature in degrees Celsius; None: not told.

    users are the rows whose processes compute on it, SUITE/ROW, and the ids of processes that are no row's.
    """

    node: str
    index: int
    name: str
    utilization: float | None
    used_gib: float | None
    total_gib: float | None
    celsius: float | None
    users: tuple[str, ...] = ()


@dataclass(frozen=True)
class RowSeen:
    """A row's job: RUN/SUITE/ROW, Slurm's state and reason, the node it runs on, and where the row says that it is."""

    name: str
    state: str
    reason: str
    progress: Progress | None = None


@dataclass(frozen=True)
class Sight:
    """GPUs and rows at one moment; ``unseen`` says of each node that did not answer why."""

    gpus: tuple[GpuSeen, ...]
    rows: tuple[RowSeen, ...]
    unseen: tuple[str, ...] = ()


def look(seen: Seen) -> Sight:
    """What there is to be seen now. NotReached where Slurm's machine does not answer."""
    tagged = f"{queue.COMMENT_PREFIX} "
    jobs = [job for job in queue.jobs(seen.shell) if job.comment.startswith(tagged) and not job.over]
    gpus: list[GpuSeen] = []
    unseen: list[str] = []
    for node, shell, command in _asked(seen, jobs):
        try:
            gpus += [gpu for gpu in gpus_in(shell.run(command, repeatable=True).out, node) if gpu not in gpus]
        except NotReached as problem:
            unseen.append(str(problem))
    progress = _progress(seen, [job.name for job in jobs if not job.waits])
    rows = [
        RowSeen(job.name, job.state, job.reason if job.waits else "", progress.get(job.name))
        for job in sorted(jobs, key=lambda job: (job.waits, int(job.id) if job.id.isdigit() else 0))
    ]
    return Sight(tuple(gpus), tuple(rows), tuple(unseen))


def _asked(seen: Seen, jobs: list[queue.Job]) -> Iterator[tuple[str, Shell, str]]:
    """Node, shell and command of each question: to the nodes themselves, else from within the jobs that run there."""
    if seen.nodes:
        yield from ((name, shell, GPUS) for name, shell in seen.nodes)
        return
    for job in jobs:
        if not job.waits:
            step = ["srun", "--quiet", f"--jobid={job.id}", "--overlap", "--ntasks=1", "sh", "-c", GPUS]
            yield f"job {job.id}", seen.shell, f"{shlex.join(step)} || true"


def gpus_in(text: str, node: str) -> list[GpuSeen]:
    """The GPUs in what GPUS prints."""
    lines = [[part.strip() for part in line.split(",")] for line in text.splitlines()]
    users: dict[str, list[str]] = {}
    for _, gpu, pid, row in (line for line in lines if line[0] == "process" and len(line) == 4):
        users.setdefault(gpu, []).append("/".join(row.split("/")[-2:]) if row else f"process {pid}")
    found = [nvidia_smi.status_of(",".join(line[1:])) for line in lines if line[0] == "gpu"]
    return [
        GpuSeen(
            node,
            gpu.index,
            gpu.name,
            gpu.util_percent,
            gpu.used_gib,
            gpu.total_gib,
            gpu.celsius,
            tuple(dict.fromkeys(users.get(gpu.uuid, ()))),
        )
        for gpu in found
        if gpu
    ]


def monitor_table(sight: Sight) -> Group:
    """The sight for people."""
    gpus = Table("node", "GPU", "busy", "memory GiB", "temperature", "rows", box=None, padding=(0, 2, 0, 0))
    for gpu in sight.gpus:
        memory = f"{_told(gpu.used_gib, '.1f')} of {_told(gpu.total_gib, '.1f')}"
        busy, warm = _told(gpu.utilization, ".0f", " %"), _told(gpu.celsius, ".0f", " °C")
        gpus.add_row(gpu.node, f"{gpu.index} {gpu.name}", busy, memory, warm, ", ".join(gpu.users))
    rows = Table("row", "state", "phase", "micro-steps", "peak GiB", "left", box=None, padding=(0, 2, 0, 0))
    for row in sight.rows:
        state = f"{row.state.lower()} ({row.reason})" if row.reason else row.state.lower()
        rows.add_row(row.name, state, *_where(row.progress))
    return Group(gpus, "", rows if sight.rows else "no rows", *sight.unseen)


def _progress(seen: Seen, names: list[str]) -> Mapping[str, Progress]:
    """Where running rows say that they are, all by one question."""
    if not names:
        return {}
    lines = [f"cd {shlex.quote(seen.folder)} || exit 0"]
    for name in names:
        path = shlex.quote(f"{name}/{PROGRESS_FILE}")
        lines.append(f"printf '%s|%s\\n' {shlex.quote(name)} \"$(tr -d '\\n' < {path} 2> /dev/null)\"")
    found = {}
    for name, _, text in (
        line.partition("|") for line in seen.shell.run("\n".join(lines), repeatable=True).out.split("\n")
    ):
        try:
            found[name] = Progress.model_validate_json(text)
        except ValidationError:
            continue
    return found


def _where(progress: Progress | None) -> tuple[str, str, str, str]:
    if progress is None:
        return "", "", "", ""
    steps = f"{progress.micro_steps} of {progress.planned_micro_steps}"
    left = clock(progress.left_s) if progress.left_s is not None else ""
    return progress.phase, steps, _told(progress.memory.peak_gib, ".4g"), left


def _told(value: float | None, form: str, unit: str = "") -> str:
    return "?" if value is None else f"{value:{form}}{unit}"
