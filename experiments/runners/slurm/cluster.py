"""A cluster as rows see it: the folder there, the code there, and the script that runs one row as a job.

FOLDER/RUN_ID/run.json, FOLDER/RUN_ID/SUITE/ROW/ is a run as it is here. FOLDER/RUN_ID/.jobs/ROW-ATTEMPT/ has the
job's script, what it printed (out.txt), and two marks that the job makes: ``started`` and, last of all, ``ended``.
FOLDER/code/SHA256/ is the project's code, where no image has it. FOLDER/cache/ has what is fetched once for all runs,
huggingface/ in it what is of the hub. FOLDER/cache/fetched/KEY/ is of the job that fetched a need: out.txt, and
``there``, the paths that it is at.

A job of several nodes runs the row on its first; srun has each further one run its ranks (training/node.py), in a
container of its own where rows have one, as soon as the row's worker says in .jobs/ROW-ATTEMPT/meeting where it is met.
"""

import hashlib
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

from experiments.errors import InputError
from experiments.inputs.requirements import Need
from experiments.results import rendezvous
from experiments.results.provenance import code_sha256, git_commit
from experiments.results.run_folder import RUN_FILE, RunFolder, row_path
from experiments.results.schema import CHECKPOINTS_FOLDER, RESULT_FILE
from experiments.runners.slurm.profile import Profile
from experiments.suites.row_spec import RowSpec
from experiments.system.files import CODE
from provision import reproducible
from provision.errors import CommandFailed
from provision.ssh.shell import Shell

ROOMS = ("experiments", "provision")
CARRIED = (".py", ".yaml", ".ipynb", ".html", ".css", ".js", ".h", ".cpp")
LEFT_OUT = ("evidence", "__pycache__")
JOBS = ".jobs"
STARTED, ENDED, OUT, SPEC, SCRIPT = "started", "ended", "out.txt", "spec.json", "job.sh"
RESERVE_S = 120
CHECK_S = 300.0
BUSY = 75
PATHS_FILE = "there"
FETCH_MIN, FETCH_CPUS, FETCH_GIB = 240, 2, 16


@dataclass(frozen=True)
class JobSpec:
    """One row that is to be run there, ``attempt`` telling it from other starts of the same row.

    after: the jobs that have to end well before its own begins; else that is cancelled.
    """

    spec: RowSpec
    attempt: str
    worker: str
    grace_s: float
    after: tuple[str, ...] = ()

    @property
    def limit_s(self) -> float:
        """How long its job may take."""
        return self.spec.settings.time_limit_s + self.grace_s + RESERVE_S

    @property
    def place(self) -> str:
        """Its job's folder, from the run's."""
        return f"{JOBS}/{self.spec.row}-{self.attempt}"

    @property
    def row(self) -> str:
        """The row's folder, from the run's."""
        return row_path(self.spec.suite, self.spec.row)


class Cluster:
    """A cluster of that ``profile``, whose commands are given through ``shell``."""

    def __init__(self, shell: Shell, profile: Profile) -> None:
        self.shell = shell
        self.profile = profile
        self._code = ""

    def prepare(self, run: RunFolder) -> None:
        """Have the run's folder and the code there, and see that Python starts there and has this very code.

        InputError when it has not.
        """
        run_id = run.read_run().run_id
        self.shell.run("command -v sbatch squeue scancel tar sha256sum", repeatable=True)
        if self.profile.way != "docker":
            self._code = self._uploaded_code()
        self.shell.put((run.path / RUN_FILE).read_bytes(), f"{self.run_folder(run_id)}/{RUN_FILE}")
        self._check()

    def run_folder(self, run_id: str) -> str:
        """Where a run's folder is there."""
        return f"{self.folder}/{run_id}"

    @cached_property
    def folder(self) -> str:
        """The folder there, which is made where it is not there; its whole path."""
        made = f"mkdir -p {shlex.quote(self.profile.folder)} && cd {shlex.quote(self.profile.folder)} && pwd -P"
        return self.shell.run(made, repeatable=True).out.strip()

    @property
    def cache(self) -> str:
        """Where what is fetched is kept there."""
        return f"{self.folder}/cache"

    def script(self, job_spec: JobSpec, run_id: str, name: str, comment: str) -> str:
        """The job's script: the whole of what Slurm is told, and all that the job does."""
        folder = f"{self.run_folder(run_id)}/{job_spec.place}"
        nodes = job_spec.spec.settings.nodes_of(self.profile.nodes)
        job = ["python", "-m", "experiments.runners.slurm.job", self.run_folder(run_id), f"{folder}/{SPEC}"]
        job += [job_spec.worker, f"{job_spec.grace_s:g}", str(nodes)]
        lines = [
            f"#!/bin/{self._bash}",
            *(f"#SBATCH {option}" for option in self._options(job_spec, folder, name, comment)),
            f"cd {shlex.quote(folder)} || exit 1",
            f'echo "$SLURM_JOB_ID" > {STARTED}',
            f"trap 'echo $? > {ENDED}.part; mv {ENDED}.part {ENDED}' EXIT",
            f"row={shlex.quote(f'{self.run_folder(run_id)}/{job_spec.row}')}",
            f'if [ -e "$row/{RESULT_FILE}" ]; then rm -rf "$row"; fi',
            f"cat > {SPEC} <<'SPEC'\n{job_spec.spec.model_dump_json()}\nSPEC",
            *self._begin(),
            FREE_GPUS,
            *(self._others(nodes, folder) if nodes > 1 else ()),
            *self._running(shlex.join(job), nodes),
        ]
        return "\n".join(lines) + "\n"

    def fetching(self, need: Need, name: str, comment: str) -> str:
        """The script of the job that fetches ``need``: once where nodes share the folder, else on each of them."""
        profile, folder = self.profile, self.fetched(need)
        nodes = 1 if profile.shared else profile.nodes
        options = {
            "job-name": name,
            "comment": comment,
            "output": f"{folder}/{OUT}",
            "time": str(FETCH_MIN),
            "nodes": str(nodes),
            "ntasks-per-node": "1",
            "cpus-per-task": str(min(FETCH_CPUS, profile.cpus_per_node)),
            "mem": f"{int(min(FETCH_GIB, profile.memory_per_node_gib / 4) * 1024)}M",
            "account": profile.account,
            "partition": profile.cpu_partition or profile.partition,
        }
        room = "launch" if need.kind == "data" else "training"
        command = shlex.join(["python", "-m", f"experiments.{room}.fetch", need.model_dump_json()])
        running = [*self._begin(), *self._running(command, more=ASKING_THE_HUB)]
        node = shlex.quote("\n".join([f"mkdir -p {shlex.quote(self.cache)}", *running]))
        srun = f"srun --nodes={nodes} --ntasks={nodes} --kill-on-bad-exit=1 --chdir=/ " if nodes > 1 else ""
        lines = [
            f"#!/bin/{self._bash}",
            *(f"#SBATCH {option}" for option in _told(options)),
            f"cd {shlex.quote(folder)} || exit 1",
            f"rm -f {PATHS_FILE}",
            f"trap '[ $? = 0 ] && mv {PATHS_FILE}.part {PATHS_FILE}' EXIT",
            "trap 'kill -TERM $child' TERM INT",
            f"{srun}{self._bash} -c {node} > {PATHS_FILE}.part & child=$!",
            *WAIT,
        ]
        return "\n".join(lines) + "\n"

    def fetched(self, need: Need) -> str:
        """The folder of the job that fetches ``need``."""
        return f"{self.cache}/fetched/{need.key}"

    def _options(self, job_spec: JobSpec, folder: str, name: str, comment: str) -> list[str]:
        settings, profile = job_spec.spec.settings, self.profile
        nodes = settings.nodes_of(profile.nodes)
        gpus = settings.world_size // nodes if profile.gpus_per_node else 0
        share = gpus / profile.gpus_per_node if gpus else 1 / max(1, profile.cpus_per_node // 2)
        options = {
            "job-name": name,
            "comment": comment,
            "output": f"{folder}/{OUT}",
            "time": str(math.ceil(job_spec.limit_s / 60)),
            "nodes": str(nodes),
            "ntasks-per-node": "1",
            "cpus-per-task": str(max(1, int(share * profile.cpus_per_node))),
            "mem": f"{max(1, int(share * profile.memory_per_node_gib * 1024))}M",
            "account": profile.account,
            "partition": profile.partition,
            "dependency": f"afterok:{':'.join(job_spec.after)}" if job_spec.after else None,
            "kill-on-invalid-dep": "yes" if job_spec.after else None,
        }
        return [*_told(options), *([profile.gpu_option.format(gpus=gpus)] if gpus else [])]

    def _begin(self) -> list[str]:
        """What a shell there needs before Python starts."""
        profile = self.profile
        lines = [*profile.setup]
        if profile.modules:
            lines.append(f"module load {shlex.join(profile.modules)} || exit 1")
        if profile.way == "venv" and profile.environment:
            lines.append(f". {shlex.quote(profile.environment)}/bin/activate || exit 1")
        return lines

    @property
    def _bash(self) -> str:
        """The shell of all this: where modules are loaded one of a login, as others may not know ``module``."""
        return "bash -l" if self.profile.modules else "bash"

    def _others(self, nodes: int, folder: str) -> list[str]:
        """The lines that have the further nodes of a job take part; in ``row`` is the row's folder."""
        begin = [f"mkdir -p {shlex.quote(folder)}", OWN_SHARE, *self._begin(), FREE_GPUS]
        node = "\n".join([*begin, *self._running(NODE, nodes)])
        checkpoints = [] if self.profile.shared else [f'rm -rf "$row/{CHECKPOINTS_FOLDER}"']
        options = f"--nodes={nodes - 1} --ntasks={nodes - 1} --relative=1 --kill-on-bad-exit=1 --chdir=/"
        srun = f'srun {options} --cpus-per-task="$SLURM_CPUS_PER_TASK" {self._bash} -c "$node"'
        return [
            *checkpoints,
            FIRST,
            f"export {rendezvous.FOLDER}={shlex.quote(folder)}",
            f"node={shlex.quote(node)}",
            f"rm -f {rendezvous.MEETING_FILE} {rendezvous.LEFT_FILE}",
            "(",
            f"  until [ -e {rendezvous.MEETING_FILE} ]; do sleep 0.2; done",
            f'  export {rendezvous.MEETING}="$(cat {rendezvous.MEETING_FILE})"',
            f"  {srun} < /dev/null > {rendezvous.SAID_FILE} 2>&1",
            f"  echo $? > {rendezvous.LEFT_FILE}",
            ") &",
        ]

    def _exports(self) -> dict[str, str]:
        own = {"TESTBED_CACHE": self.cache, "HF_HOME": f"{self.cache}/huggingface", "HF_HUB_OFFLINE": "1"}
        if self.profile.way == "docker":
            return {**own, "HOME": self.cache, "USER": "testbed"}
        commit = {"TESTBED_COMMIT": commit} if (commit := git_commit()) else {}
        return {**own, **commit, "PYTHONPATH": f"{self._code}"}

    def _running(self, command: str, nodes: int = 1, more: Mapping[str, str] = MappingProxyType({})) -> list[str]:
        """The lines that run ``command`` in the cluster's Python, and end it when the job is to end.

        nodes: those of the job; where there are several, the command is to reach the others. more: what it finds set
        besides.
        """
        profile, image = self.profile, shlex.quote(self.profile.environment or "")
        exports = {**self._exports(), **more}
        if profile.way == "venv":
            path = exports.pop("PYTHONPATH")
            told = " ".join(f"{key}={shlex.quote(value)}" for key, value in exports.items())
            lines = [f'export {told} PYTHONPATH={shlex.quote(path)}"${{PYTHONPATH:+:$PYTHONPATH}}"']
            return [*lines, "trap 'kill -TERM $child' TERM INT", f"{command} & child=$!", *WAIT]
        if profile.way == "apptainer":
            exports["TESTBED_IMAGE"] = profile.environment or ""
            told = " ".join(f"--env {key}={shlex.quote(value)}" for key, value in exports.items())
            run = f"{profile.apptainer} --bind {shlex.quote(self.folder)} {told} {image} {command}"
            return ["trap 'kill -TERM $child' TERM INT", f"{run} & child=$!", *WAIT]
        told = " ".join(f"--env {key}={shlex.quote(value)}" for key, value in exports.items())
        folder = shlex.quote(self.folder)
        together = "".join(f" --env {name}" for name in PASSED_ON) + " --network host" if nodes > 1 else ""
        return [
            'container=testbed-"$SLURM_JOB_ID"',
            'devices=(); for gpu in ${SLURM_JOB_GPUS//,/ }; do devices+=(--device "nvidia.com/gpu=$gpu"); done',
            f"image=$(docker image inspect --format '{{{{.Id}}}}' {image}) || exit 1",
            "trap 'docker rm --force \"$container\" > /dev/null 2>&1' TERM INT",
            'docker run --rm --init --name "$container" --user "$(id -u):$(id -g)" --ipc=host "${devices[@]}"'
            f'{together} --volume {folder}:{folder} {told} --env TESTBED_IMAGE="$image" {image} {command} & child=$!',
            *WAIT,
        ]

    def _uploaded_code(self) -> str:
        """The folder there that has the project's code; it is brought once."""
        packed = code_archive()
        digest = hashlib.sha256(packed).hexdigest()
        folder = f"{self.folder}/code/{digest[:16]}"
        quoted, archive = shlex.quote(folder), f"{folder}.tar.gz"
        if self.shell.run(f"test -d {quoted}", check=False, repeatable=True).code:
            self.shell.put(packed, archive)
            fresh = f'fresh=$(mktemp -d {quoted}.XXXX) && tar -xzf {shlex.quote(archive)} -C "$fresh"'
            self.shell.run(f'{fresh} && chmod 755 "$fresh" && mv -T "$fresh" {quoted} || test -d {quoted}')
        return folder

    def _check(self) -> None:
        """InputError when Python does not start there, lacks papermill, or has other code than is here."""
        ask = "import papermill; from experiments.results.provenance import code_sha256; print(code_sha256())"
        lines = [*self._begin(), *self._running(f"python -c {shlex.quote(ask)}")]
        script = "\n".join(["SLURM_JOB_ID=check-$$", *lines])
        where = f"profile {self.profile.name}: {self.profile.way} {self.profile.environment or ''}".strip()
        try:
            said = self.shell.run(f"{self._bash} -c {shlex.quote(script)}", timeout_s=CHECK_S, repeatable=True).out
        except CommandFailed as problem:
            raise InputError(f"{where}: its Python cannot run rows: {problem}") from None
        if code_sha256() not in said:
            raise InputError(f"{where}: has other training code than this checkout; make it anew from this one")


NODE = 'python -m experiments.training.distributed.node_agent "$((SLURM_NODEID + 1))" "$SLURMD_NODENAME"'
QUIETLY = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
ASKING_THE_HUB = {"HF_HUB_OFFLINE": "0", "HF_HUB_VERBOSITY": "error", **dict.fromkeys(QUIETLY, "1")}
PASSED_ON = (rendezvous.FOLDER, rendezvous.ADDRESS, rendezvous.MEETING, "OMP_NUM_THREADS")
OWN_SHARE = 'export SLURM_JOB_GPUS="${SLURM_STEP_GPUS:-}" OMP_NUM_THREADS="$SLURM_CPUS_PER_TASK"'
FIRST = f"""\
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export {rendezvous.ADDRESS}="$(scontrol show node --oneliner "$first" | sed -n 's/.* NodeAddr=\\([^ ]*\\).*/\\1/p')\""""
WAIT = ("while kill -0 $child 2> /dev/null; do wait $child; code=$?; done", "exit $code")
FREE_GPUS = f"""\
if command -v nvidia-smi > /dev/null && [ -n "${{CUDA_VISIBLE_DEVICES:-}}" ]; then
  asked=pid,process_name,used_memory
  others=$(nvidia-smi --id="$CUDA_VISIBLE_DEVICES" --query-compute-apps=$asked --format=csv,noheader)
  if [ -n "$others" ]; then echo "the row's GPUs are not free: $others" | tr '\\n' ' '; exit {BUSY}; fi
fi"""


def _told(options: dict[str, str | None]) -> list[str]:
    return [*(f"--{key}={shlex.quote(value)}" for key, value in options.items() if value), "--no-requeue"]


def code_archive() -> bytes:
    """The project's code as one archive, the same bytes for the same code."""
    paths = (path for room in ROOMS for path in reproducible.files_in(CODE / room, LEFT_OUT) if path.suffix in CARRIED)
    return reproducible.archive_bytes({path.relative_to(CODE).as_posix(): path for path in paths})
