"""Write batch scripts: for the job that runs one row, and for the job that downloads one artifact.

A job of several nodes runs the row on its first node. The row's worker writes a rendezvous file, with the address at
which it accepts the other nodes. Then srun starts the node agent on each of the other nodes, in a separate container if
rows run in containers.
"""

import math
import shlex
from dataclasses import dataclass

from experiments.inputs.requirements import Artifact
from experiments.results import rendezvous
from experiments.results.run_folder import row_path
from experiments.results.schema import CHECKPOINTS_FOLDER, RESULT_FILE
from experiments.runners.admission import host_memory_needed_gib
from experiments.runners.slurm.layout import (
    ENDED_FILE,
    JOB_SPEC_FILE,
    JOBS_FOLDER,
    OUTPUT_FILE,
    PATHS_FILE,
    STARTED_FILE,
    Layout,
)
from experiments.runners.slurm.profile import Profile
from experiments.runners.slurm.runtimes import WAIT_FOR_CHILD, Runtime
from experiments.suites.row_spec import RowSpec

ROW_MODULE = "experiments.runners.slurm.job"
NODE_MODULE = "experiments.training.distributed.node_agent"
STAGING_MODULES = {"data": "experiments.inputs.fetch_dataset"}
"""Modules that download artifacts, by kind of artifact."""
HUB_MODULE = "experiments.training.data.fetch_hub"
"""Module that downloads all other kinds of artifacts, from the Hugging Face hub."""

STARTUP_LIMIT_S = 120
STAGING_LIMIT_MIN, STAGING_CPUS, STAGING_GIB = 240, 2, 16
GPUS_BUSY_EXIT_CODE = 75
"""Exit code of a job whose GPUs are used by other processes."""

PROGRESS_BAR_VARIABLES = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
DOWNLOAD_VARIABLES = {"HF_HUB_OFFLINE": "0", "HF_HUB_VERBOSITY": "error", **dict.fromkeys(PROGRESS_BAR_VARIABLES, "1")}
NODE_COMMAND = f'python -m {NODE_MODULE} "$((SLURM_NODEID + 1))" "$SLURMD_NODENAME"'
EXPORT_NODE_RESOURCES = 'export SLURM_JOB_GPUS="${SLURM_STEP_GPUS:-}" OMP_NUM_THREADS="$SLURM_CPUS_PER_TASK"'
EXPORT_ADDRESS = f"""\
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address="$(scontrol show node --oneliner "$first" | sed -n 's/.* NodeAddr=\\([^ ]*\\).*/\\1/p')"
export {rendezvous.ADDRESS_VARIABLE}="$address\""""
REQUIRE_FREE_GPUS = f"""\
if command -v nvidia-smi > /dev/null && [ -n "${{CUDA_VISIBLE_DEVICES:-}}" ]; then
  fields=pid,process_name,used_memory
  others=$(nvidia-smi --id="$CUDA_VISIBLE_DEVICES" --query-compute-apps=$fields --format=csv,noheader)
  if [ -n "$others" ]; then echo "the row's GPUs are not free: $others" | tr '\\n' ' '; exit {GPUS_BUSY_EXIT_CODE}; fi
fi"""


@dataclass(frozen=True)
class JobSpec:
    """One attempt to run one row as a job.

    attempt: a random id, which distinguishes this job from other jobs of the row. waits_for_jobs: ids of jobs that must
    succeed before this job starts. If one of them fails, Slurm cancels this job.
    """

    spec: RowSpec
    attempt: str
    worker: str
    grace_s: float
    waits_for_jobs: tuple[str, ...] = ()

    @property
    def limit_s(self) -> float:
        """Return the time limit of the job, s: of the row, until the row is killed, and for the start of the job."""
        return self.spec.settings.time_limit_s + self.grace_s + STARTUP_LIMIT_S

    @property
    def folder(self) -> str:
        """Return the job's folder, relative to the run's folder."""
        return f"{JOBS_FOLDER}/{self.spec.row}-{self.attempt}"

    @property
    def row_folder(self) -> str:
        """Return the row's folder, relative to the run's folder."""
        return row_path(self.spec.suite, self.spec.row)


@dataclass(frozen=True)
class JobScripts:
    """Writes the batch scripts of a cluster."""

    profile: Profile
    layout: Layout
    runtime: Runtime

    def row_script(self, job: JobSpec, run_id: str, name: str, comment: str) -> str:
        """Return the script of the job that runs a row."""
        run = self.layout.run_folder(run_id)
        folder = f"{run}/{job.folder}"
        nodes = job.spec.settings.nodes_to_use(self.profile.nodes)
        command = [
            "python",
            "-m",
            ROW_MODULE,
            run,
            f"{folder}/{JOB_SPEC_FILE}",
            job.worker,
            f"{job.grace_s:g}",
            str(nodes),
        ]
        lines = [
            f"#!/bin/{self.runtime.shell}",
            *(f"#SBATCH {option}" for option in self._row_options(job, folder, name, comment)),
            f"cd {shlex.quote(folder)} || exit 1",
            f'echo "$SLURM_JOB_ID" > {STARTED_FILE}',
            f"trap 'echo $? > {ENDED_FILE}.part; mv {ENDED_FILE}.part {ENDED_FILE}' EXIT",
            f"row_folder={shlex.quote(f'{run}/{job.row_folder}')}",
            f'if [ -e "$row_folder/{RESULT_FILE}" ]; then rm -rf "$row_folder"; fi',
            f"cat > {JOB_SPEC_FILE} <<'SPEC'\n{job.spec.model_dump_json()}\nSPEC",
            *self.runtime.setup(),
            REQUIRE_FREE_GPUS,
            *(self._lines_to_start_other_nodes(nodes, folder) if nodes > 1 else ()),
            *self.runtime.script_lines(shlex.join(command), nodes),
        ]
        return "\n".join(lines) + "\n"

    def staging_script(self, artifact: Artifact, name: str, comment: str) -> str:
        """Return the script of the job that downloads ``artifact``: on each node, or once if nodes share the folder."""
        profile, folder = self.profile, self.layout.staging_folder(artifact.key)
        nodes = 1 if profile.shared_folder else profile.nodes
        module = STAGING_MODULES.get(artifact.kind, HUB_MODULE)
        command = self.runtime.script_lines(
            shlex.join(["python", "-m", module, artifact.model_dump_json()]), variables=DOWNLOAD_VARIABLES
        )
        node = "\n".join([f"mkdir -p {shlex.quote(self.layout.cache)}", *self.runtime.setup(), *command])
        srun = f"srun --nodes={nodes} --ntasks={nodes} --kill-on-bad-exit=1 --chdir=/ " if nodes > 1 else ""
        lines = [
            f"#!/bin/{self.runtime.shell}",
            *(f"#SBATCH {option}" for option in self._staging_options(nodes, folder, name, comment)),
            f"cd {shlex.quote(folder)} || exit 1",
            f"rm -f {PATHS_FILE}",
            f"trap '[ $? = 0 ] && mv {PATHS_FILE}.part {PATHS_FILE}' EXIT",
            "trap 'kill -TERM $child' TERM INT",
            f"{srun}{self.runtime.shell} -c {shlex.quote(node)} > {PATHS_FILE}.part & child=$!",
            *WAIT_FOR_CHILD,
        ]
        return "\n".join(lines) + "\n"

    def _row_options(self, job: JobSpec, folder: str, name: str, comment: str) -> list[str]:
        settings, profile = job.spec.settings, self.profile
        nodes = settings.nodes_to_use(profile.nodes)
        gpus = settings.gpus // nodes if profile.gpus_per_node else 0
        share = gpus / profile.gpus_per_node if gpus else self._share_without_gpus(job.spec)
        options = {
            "job-name": name,
            "comment": comment,
            "output": f"{folder}/{OUTPUT_FILE}",
            "time": str(math.ceil(job.limit_s / 60)),
            "nodes": str(nodes),
            "ntasks-per-node": "1",
            "cpus-per-task": str(max(1, int(share * profile.cpus_per_node))),
            "mem": f"{max(1, int(share * profile.memory_per_node_gib * 1024))}M",
            "account": profile.account,
            "partition": profile.partition if settings.gpus else profile.cpu_partition or profile.partition,
            "dependency": f"afterok:{':'.join(job.waits_for_jobs)}" if job.waits_for_jobs else None,
            "kill-on-invalid-dep": "yes" if job.waits_for_jobs else None,
        }
        return [*_sbatch_options(options), *([profile.gpu_option.format(gpus=gpus)] if gpus else [])]

    def _share_without_gpus(self, spec: RowSpec) -> float:
        """Return the share of a node for a job without GPUs: two cores, or more if the row needs more memory."""
        cores = 1 / max(1, self.profile.cpus_per_node // 2)
        memory = 0.0 if spec.settings.gpus else host_memory_needed_gib(spec) / self.profile.memory_per_node_gib
        return min(1.0, max(cores, memory))

    def _staging_options(self, nodes: int, folder: str, name: str, comment: str) -> list[str]:
        profile = self.profile
        options = {
            "job-name": name,
            "comment": comment,
            "output": f"{folder}/{OUTPUT_FILE}",
            "time": str(STAGING_LIMIT_MIN),
            "nodes": str(nodes),
            "ntasks-per-node": "1",
            "cpus-per-task": str(min(STAGING_CPUS, profile.cpus_per_node)),
            "mem": f"{int(min(STAGING_GIB, profile.memory_per_node_gib / 4) * 1024)}M",
            "account": profile.account,
            "partition": profile.cpu_partition or profile.partition,
        }
        return _sbatch_options(options)

    def _lines_to_start_other_nodes(self, nodes: int, folder: str) -> list[str]:
        """Return the lines that start the node agents in the background. They use the shell variable row_folder."""
        prelude = [f"mkdir -p {shlex.quote(folder)}", EXPORT_NODE_RESOURCES, *self.runtime.setup(), REQUIRE_FREE_GPUS]
        node = "\n".join([*prelude, *self.runtime.script_lines(NODE_COMMAND, nodes)])
        checkpoints = [] if self.profile.shared_folder else [f'rm -rf "$row_folder/{CHECKPOINTS_FOLDER}"']
        options = f"--nodes={nodes - 1} --ntasks={nodes - 1} --relative=1 --kill-on-bad-exit=1 --chdir=/"
        srun = f'srun {options} --cpus-per-task="$SLURM_CPUS_PER_TASK" {self.runtime.shell} -c "$node"'
        return [
            *checkpoints,
            EXPORT_ADDRESS,
            f"export {rendezvous.FOLDER_VARIABLE}={shlex.quote(folder)}",
            f"node={shlex.quote(node)}",
            f"rm -f {rendezvous.RENDEZVOUS_FILE} {rendezvous.EXIT_FILE}",
            "(",
            f"  until [ -e {rendezvous.RENDEZVOUS_FILE} ]; do sleep 0.2; done",
            f'  export {rendezvous.RENDEZVOUS_VARIABLE}="$(cat {rendezvous.RENDEZVOUS_FILE})"',
            f"  {srun} < /dev/null > {rendezvous.AGENT_LOG_FILE} 2>&1",
            f"  echo $? > {rendezvous.EXIT_FILE}",
            ") &",
        ]


def _sbatch_options(options: dict[str, str | None]) -> list[str]:
    return [*(f"--{key}={shlex.quote(value)}" for key, value in options.items() if value), "--no-requeue"]
