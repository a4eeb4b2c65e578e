"""Read the profiles of clusters from YAML files. The profiles of known clusters are in clusters/."""

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from experiments.errors import unknown_name_error
from experiments.suites.yaml_schema import StrictModel, read_yaml, validate
from provision.models import Gpu, Node

CLUSTERS = Path(__file__).parent / "clusters"
RuntimeName = Literal["venv", "apptainer", "docker"]


class Profile(StrictModel):
    """Description of a Slurm cluster, and how rows run on it."""

    name: str = Field(description="name of the cluster in commands and in the names of result folders")
    title: str = Field(description="name of the cluster in reports")
    host: str | None = Field(
        default=None, description="host in the user's SSH configuration; None: run Slurm's commands on this machine"
    )
    account: str | None = Field(default=None, description="project that jobs are charged to")
    partition: str | None = Field(default=None, description="partition of jobs with GPUs; None: the cluster's default")
    cpu_partition: str | None = Field(
        default=None, description="partition of jobs without a GPU; None: as for jobs with GPUs"
    )
    needs_account: bool = Field(default=False, description="whether the cluster rejects jobs without an account")
    nodes: PositiveInt = Field(default=1, description="maximum number of nodes per job")
    gpu: str | None = Field(default=None, description="name of the node's GPUs as the driver reports it; None: no GPU")
    gpu_memory_gib: NonNegativeFloat = Field(default=0.0, description="memory of each GPU, GiB")
    gpus_per_node: int = Field(default=0, ge=0, description="number of GPUs per node")
    gpu_option: str = Field(
        default="--gres=gpu:{gpus}", description="option of sbatch that requests {gpus} GPUs per node"
    )
    cpus_per_node: PositiveInt = Field(description="number of CPU cores per node")
    memory_per_node_gib: PositiveFloat = Field(description="host memory per node, GiB")
    processor: str = Field(default="unknown", description="model of the CPUs, for reports")
    runtime: RuntimeName = Field(
        default="venv",
        description="kind of environment in which rows run; the key environment has its path or name",
        validation_alias=AliasChoices("runtime", "way"),
    )
    environment: str | None = Field(
        default=None, description="path of the virtual environment or Apptainer image, or name of the Docker image"
    )
    apptainer: str = Field(
        default="apptainer exec --nv", description="command that runs another command in an Apptainer image with GPUs"
    )
    modules: tuple[str, ...] = Field(default=(), description="modules that a job loads")
    setup: tuple[str, ...] = Field(default=(), description="first lines of the job script, before modules are loaded")
    folder: str = Field(default="llm-testbed", description="folder of the runs, relative to the home folder")
    shared_folder: bool = Field(
        default=True,
        description="whether all nodes share the folder of the runs",
        validation_alias=AliasChoices("shared_folder", "shared"),
    )
    dedicated: bool = Field(default=False, description="whether only the jobs of one run use the nodes")
    poll_s: PositiveFloat = Field(default=60.0, description="time between two queries of the queue, seconds")

    @property
    def dedicated_gpu_count(self) -> int | None:
        """Return the number of GPUs of a cluster that only one run uses; None if other jobs also use the nodes."""
        return self.nodes * self.gpus_per_node if self.dedicated else None

    @property
    def node(self) -> Node:
        """Return a node as the profile describes it."""
        name = self.gpu or ""
        gpus = tuple(Gpu(index, name, self.gpu_memory_gib, "") for index in range(self.gpus_per_node))
        gpu_text = f"{len(gpus)} x {self.gpu}" if gpus else "no GPU"
        memory = f"{self.memory_per_node_gib:.0f} GiB of memory"
        description = f"{self.title}: {self.cpus_per_node} cores, {memory}, {gpu_text} a node"
        return Node(description, gpus, self.cpus_per_node, self.memory_per_node_gib, self.processor)


def profile_named(name: str) -> Profile:
    """Return the profile in the YAML file ``name``, or the known profile with this name.

    Raises InputError if there is no such profile; the message lists the known ones.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = CLUSTERS / f"{name}.yaml"
        if not path.is_file():
            known = sorted(file.stem for file in CLUSTERS.glob("*.yaml"))
            raise unknown_name_error("profile", name, [*known, "a YAML file of your own"], "--profile")
    return validate(Profile, read_yaml(path), str(path))
