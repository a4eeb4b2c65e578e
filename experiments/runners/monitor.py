"""Monitor GPUs, the processes that use them, and running and queued rows."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic import ValidationError
from rich.console import Group

from experiments.results.schema import PROGRESS_FILE, Progress
from experiments.results.wording import format_duration, format_size
from experiments.runners.local.row_process import ROW_VARIABLE
from experiments.runners.progress import steps_in_words
from experiments.runners.slurm import queue
from experiments.runners.targets import MonitorTarget
from experiments.system.tables import Column, Table
from provision.errors import NotReached
from provision.hardware import nvidia_smi
from provision.ssh.shell import Shell

GPU_QUERY = f"""\
command -v nvidia-smi > /dev/null || exit 0
{nvidia_smi.STATUS_COMMAND} | sed 's/^/gpu, /'
nvidia-smi --query-compute-apps=gpu_uuid,pid --format=csv,noheader | tr -d , | while read -r gpu pid; do
  row=$(tr '\\0' '\\n' < /proc/$pid/environ 2> /dev/null | sed -n 's/^{ROW_VARIABLE}=//p')
  echo "process, $gpu, $pid, $row"
done"""


@dataclass(frozen=True)
class MonitoredGpu:
    """A GPU at one moment: utilization in percent, memory in GiB, temperature in degrees Celsius; None if unknown.

    users: the processes that compute on the GPU: SUITE/ROW for a row's processes, 'process PID' for others.
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
class MonitoredRow:
    """A row's job: its name RUN/SUITE/ROW, Slurm's state and reason, and the progress that the row has reported."""

    name: str
    state: str
    reason: str
    progress: Progress | None = None


@dataclass(frozen=True)
class Observation:
    """GPUs and rows at one moment. unreachable: a message for each node that did not answer."""

    gpus: tuple[MonitoredGpu, ...]
    rows: tuple[MonitoredRow, ...]
    unreachable: tuple[str, ...] = ()


def observe(target: MonitorTarget) -> Observation:
    """Query the current GPUs and rows of ``target``. Raises NotReached if the machine with Slurm does not answer."""
    prefix = f"{queue.COMMENT_PREFIX} "
    jobs = [job for job in queue.list_jobs(target.shell) if job.comment.startswith(prefix) and not job.has_ended]
    gpus: list[MonitoredGpu] = []
    unreachable: list[str] = []
    for node, shell, command in _gpu_queries(target, jobs):
        try:
            gpus += [gpu for gpu in parse_gpus(shell.run(command, repeatable=True).out, node) if gpu not in gpus]
        except NotReached as problem:
            unreachable.append(str(problem))
    progress = _read_progress(target, [job.name for job in jobs if not job.is_waiting])
    rows = [
        MonitoredRow(job.name, job.state, job.reason if job.is_waiting else "", progress.get(job.name))
        for job in sorted(jobs, key=lambda job: (job.is_waiting, int(job.id) if job.id.isdigit() else 0))
    ]
    return Observation(tuple(gpus), tuple(rows), tuple(unreachable))


def _gpu_queries(target: MonitorTarget, jobs: list[queue.Job]) -> Iterator[tuple[str, Shell, str]]:
    """Yield label, shell and command of each query of GPUs.

    The queries run on the nodes that ``target`` names. Without such nodes, they run inside the running jobs.
    """
    if target.nodes:
        yield from ((name, shell, GPU_QUERY) for name, shell in target.nodes)
        return
    for job in jobs:
        if not job.is_waiting:
            step = ["srun", "--quiet", f"--jobid={job.id}", "--overlap", "--ntasks=1", "sh", "-c", GPU_QUERY]
            yield f"job {job.id}", target.shell, f"{shlex.join(step)} || true"


def parse_gpus(text: str, node: str) -> list[MonitoredGpu]:
    """Return the GPUs of ``node`` from the output of GPU_QUERY."""
    lines = [[part.strip() for part in line.split(",")] for line in text.splitlines()]
    users: dict[str, list[str]] = {}
    for _, uuid, pid, row in (line for line in lines if line[0] == "process" and len(line) == 4):
        users.setdefault(uuid, []).append("/".join(row.split("/")[-2:]) if row else f"process {pid}")
    return [
        MonitoredGpu(
            node,
            gpu.index,
            gpu.name,
            gpu.util_percent,
            gpu.used_gib,
            gpu.total_gib,
            gpu.celsius,
            tuple(dict.fromkeys(users.get(gpu.uuid, ()))),
        )
        for line in lines
        if line[0] == "gpu" and (gpu := nvidia_smi.parse_status(",".join(line[1:])))
    ]


def monitor_table(observation: Observation) -> Group:
    """Return an observation as tables."""
    gpus = Table(
        "GPU", Column("busy", number=True), "memory GiB", Column("temperature", number=True, optional=1), "rows"
    )
    for gpu in observation.gpus:
        memory = f"{_format_optional(gpu.used_gib, '.1f')} of {_format_optional(gpu.total_gib, '.1f')}"
        busy, temperature = _format_optional(gpu.utilization, ".0f", " %"), _format_optional(gpu.celsius, ".0f", " °C")
        gpus.add(f"{gpu.node} {gpu.index} {gpu.name}", busy, memory, temperature, "\n".join(gpu.users))
    numbers = (Column(name, number=True) for name in ("micro-steps", "peak", "left"))
    rows = Table("row", Column("state", prose=True), "phase", *numbers, Column("run", optional=1))
    for row in observation.rows:
        state = f"{row.state.lower()} ({row.reason})" if row.reason else row.state.lower()
        run, _, name = row.name.partition("/")
        rows.add(name, state, *_progress_cells(row.progress), run)
    return Group(gpus, "", rows if observation.rows else "no rows", *observation.unreachable)


def _read_progress(target: MonitorTarget, names: list[str]) -> Mapping[str, Progress]:
    """Return the progress reports of running rows, read with one command."""
    if not names:
        return {}
    lines = [f"cd {shlex.quote(target.folder)} || exit 0"]
    for name in names:
        path = shlex.quote(f"{name}/{PROGRESS_FILE}")
        lines.append(f"printf '%s|%s\\n' {shlex.quote(name)} \"$(tr -d '\\n' < {path} 2> /dev/null)\"")
    output = target.shell.run("\n".join(lines), repeatable=True).out
    reports = {}
    for name, _, text in (line.partition("|") for line in output.split("\n")):
        try:
            reports[name] = Progress.model_validate_json(text)
        except ValidationError:
            continue
    return reports


def _progress_cells(progress: Progress | None) -> tuple[str, str, str, str]:
    if progress is None:
        return "", "", "", ""
    steps = steps_in_words(progress)
    left = format_duration(progress.left_s) if progress.left_s is not None else ""
    return (
        progress.phase,
        steps,
        "" if progress.memory.peak_gib is None else format_size(progress.memory.peak_gib),
        left,
    )


def _format_optional(value: float | None, form: str, unit: str = "") -> str:
    return "?" if value is None else f"{value:{form}}{unit}"
