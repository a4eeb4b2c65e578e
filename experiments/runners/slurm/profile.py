"""What a cluster is and how a row is run on it: facts of a YAML file, those of known machines in clusters/."""

from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from experiments.errors import unknown
from experiments.suites.yaml_schema import StrictModel, checked, read_yaml
from provision.models import Gpu, Node

CLUSTERS = Path(__file__).parent / "clusters"


class Profile(StrictModel):
    """A cluster that Slurm shares out. Of a node: its GPUs, cores, and memory in GiB.

    host: a name of the person's ssh configuration; None: the commands of Slurm are on this machine. gpu_option is what
    sbatch is told of GPUs, {gpus} being those of a node. way: how a row's Python is started: in the virtual
    environment, the Apptainer image or the Docker image that ``environment`` names. apptainer: what starts a command in
    an Apptainer image that has the GPUs. setup: first lines of the job, before modules are loaded (``module use``).
    folder: where runs are kept there, from the home folder where it is not absolute. nodes: how many a job may have;
    how they know each other is Slurm's to say. shared: every node sees the folder.
    """

    name: str
    title: str
    host: str | None = None
    account: str | None = None
    partition: str | None = None
    cpu_partition: str | None = Field(default=None, description="of jobs that need no GPU; None: the same")
    needs_account: bool = False
    nodes: PositiveInt = 1
    gpu: str | None = Field(default=None, description="its name as the driver has it; None: no GPU")
    gpu_memory_gib: NonNegativeFloat = 0.0
    gpus_per_node: int = Field(default=0, ge=0)
    gpu_option: str = "--gres=gpu:{gpus}"
    cpus_per_node: PositiveInt
    memory_per_node_gib: PositiveFloat
    processor: str = "unknown"
    way: Literal["venv", "apptainer", "docker"] = "venv"
    environment: str | None = None
    apptainer: str = "apptainer exec --nv"
    modules: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    folder: str = "llm-testbed"
    shared: bool = True
    poll_s: PositiveFloat = 60.0

    @property
    def node(self) -> Node:
        """One node of the cluster, as the profile states it."""
        name = self.gpu or ""
        gpus = tuple(Gpu(index, name, self.gpu_memory_gib, "") for index in range(self.gpus_per_node))
        has = f"{len(gpus)} x {self.gpu}" if gpus else "no GPU"
        words = f"{self.title}: {self.cpus_per_node} cores, {self.memory_per_node_gib:.0f} GiB of memory, {has} a node"
        return Node(words, gpus, self.cpus_per_node, self.memory_per_node_gib, self.processor)


def profile_named(name: str) -> Profile:
    """The profile in the file ``name``, else the one in clusters/ that is called so; InputError names those."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = CLUSTERS / f"{name}.yaml"
        if not path.is_file():
            known = sorted(file.stem for file in CLUSTERS.glob("*.yaml"))
            raise unknown("profile", name, [*known, "a YAML file of your own"], "--profile")
    return checked(Profile, read_yaml(path), str(path))
