"""The schema of result.json: the outcome and the measurements of a row."""

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator

from experiments.errors import InputError
from experiments.results.memory_parts import StepPoint
from experiments.suites.row_spec import RowSpec
from experiments.suites.yaml_schema import error_message
from provision.files import read_bytes

SCHEMA_VERSION: Literal[1] = 1
RESULT_FILE = "result.json"
RESULTS_FILE = "results.jsonl"
SPEC_FILE = "spec.json"
PROGRESS_FILE = "progress.json"
MEASURED_FILE = "measured.json"
REJECTION_FILE = "rejection.txt"
LOG_FILE = "log.txt"
TELEMETRY_FILE = "telemetry.csv"
TELEMETRY_FOLDER = "telemetry"
"""Folder of the rows' telemetry in a run's compact form."""
NOTEBOOK_FILE = "notebook.ipynb"
RANK_FOLDER = "rank-{}"
CHECKPOINTS_FOLDER = "trainer"
EARLIER_FOLDER = "earlier"
"""Folder of a row's earlier results, after a rerun."""

Outcome = Literal["fits", "oom", "host_oom", "error", "timeout", "rejected"]
FORMER_OUTCOMES: dict[str, Outcome] = {"refused": "rejected"}
"""Outcomes in files and histories of earlier versions, with their names today."""
Phase = Literal["load", "forward", "backward", "optimizer step", "save"]
ERROR_OUTCOMES: tuple[Outcome, ...] = ("error", "timeout", "host_oom")
WARM_UP_STEPS = 2
"""Number of optimizer steps at the beginning of a training that are not timed."""
SHARED_GPU_VARIABLE = "TESTBED_SHARED_GPU"
"""Environment variable of a row's processes: set if other rows may use the row's GPU at the same time."""
START_LIMIT_S = 600.0
"""Maximum seconds for the start of a row. A row that needs more is stopped. Its time_limit_s begins after the start."""


class Record(BaseModel):
    """Base class of all stored records: immutable, rejects unknown keys, builds its validator at first use.

    NaN is the text "NaN" in JSON.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings", defer_build=True)


class Device(Record):
    """The device of a row, and its host. Memory in GiB."""

    kind: Literal["cuda", "cpu"] = Field(description="cuda: a GPU of any vendor")
    name: str = Field(description="name that the driver reports")
    count: int = Field(default=1, description="number of devices that the process sees")
    memory_gib: float | None = Field(default=None, description="total as PyTorch reports it; None on a CPU")
    card: str | None = Field(
        default=None, description="name in cards.yaml of the device, not of an emulated card; None: not in cards.yaml"
    )
    cap_gib: float | None = Field(
        default=None, description="memory limit, with which the device emulates a smaller card; None: no limit"
    )
    shared: bool = Field(
        default=False, description="other rows could use the GPU at the same time, so no times were measured"
    )
    driver: str | None = Field(default=None, description="version of the GPU driver")
    cuda: str | None = Field(default=None, description="version of CUDA that PyTorch was built with")
    compute_capability: str | None = Field(default=None, description="version of the GPU's instruction set")
    topology: str | None = Field(default=None, description="links between the GPUs, as nvidia-smi prints them")
    host_cpus: int = Field(description="cores of the host")
    host_memory_gib: float = Field(description="memory of the host")


class Snapshot(Record):
    """Memory at one point of one micro-step, GiB. On a CPU, memory is the size of all live tensor storages."""

    step: int = Field(description="optimizer step, from 0")
    micro_step: int = Field(description="micro-step within the optimizer step, from 0")
    point: StepPoint = Field(description="where in the micro-step the memory was read")
    params_gib: float = Field(description="the model's weights")
    grads_gib: float = Field(description="gradients")
    optimizer_gib: float = Field(description="the optimizer's state on the device")
    optimizer_cpu_gib: float = Field(description="the optimizer's state in host memory")
    activations_gib: float = Field(description="allocated memory minus weights, gradients and the optimizer's state")
    allocated_gib: float = Field(description="all live tensors")
    peak_gib: float = Field(description="maximum allocated memory so far")
    reserved_gib: float | None = Field(default=None, description="maximum reserved memory so far; None on a CPU")


class Memory(Record):
    """Memory of the whole row, GiB. Peaks are measured until the end or the failure."""

    snapshots: tuple[Snapshot, ...] = Field(default=(), description="memory at up to four points of each micro-step")
    peak_gib: float | None = Field(default=None, description="maximum allocated memory")
    peak_by_phase_gib: dict[Phase, float] = Field(default={}, description="maximum allocated memory in each phase")
    reserved_gib: float | None = Field(default=None, description="maximum reserved memory; None on a CPU")
    host_peak_gib: float | None = Field(default=None, description="maximum resident memory of the training process")
    params_by_gpu_gib: tuple[float, ...] = Field(
        default=(), description="weights on each GPU of a process that spreads a model over several GPUs; else empty"
    )


class Speed(Record):
    """Speed over all ranks, measured on the micro-steps after the first WARM_UP_STEPS optimizer steps."""

    optimizer_steps: int = Field(description="number of completed optimizer steps")
    micro_steps: int = Field(description="number of completed micro-steps")
    planned_micro_steps: int = Field(description="micro-steps of the whole training, as with --length as-taught")
    measured_micro_steps: int = Field(description="number of micro-steps that the times are measured on")
    micro_step_s: float = Field(
        description="median time of a micro-step; if possible, of micro-steps without an optimizer step"
    )
    step_s: float = Field(description="median time of an optimizer step with all its micro-steps")
    spread: float = Field(description="interquartile range of the times of micro-steps, divided by their median")
    samples_per_s: float = Field(description="samples per second, over all ranks")
    tflop_per_sample: float | None = Field(
        default=None,
        description="1e12 floating-point operations per sample, in the first micro-step, recomputation included",
    )
    tflops_per_s: float | None = Field(default=None, description="executed floating-point operations, TFLOP/s")
    peak_share: float | None = Field(
        default=None,
        description="tflops_per_s divided by the device's own peak rate of dense matrix products in the data type",
    )
    train_s: float = Field(description="time of all steps of the row, the first two included")
    communication_share: float | None = Field(
        default=None, description="share of the step time in communication kernels, including their waiting time"
    )
    exposed_communication_share: float | None = Field(
        default=None, description="share of the step time in communication kernels while no other kernel runs"
    )
    gpu_idle_share: float | None = Field(
        default=None, description="share of the step time in which no kernel runs on the GPU"
    )
    error_share: float = Field(
        default=0.0, description="error of predicted times in both directions, as a share of the times; 0 if measured"
    )
    ratio_error_share: float = Field(
        default=0.0,
        description="used in place of error_share if the times are compared with those of another row on the same card",
    )
    idle_error: float = Field(
        default=0.0, description="error of a predicted gpu_idle_share, in both directions; 0 if measured"
    )


class StepCounts(Record):
    """Numbers of steps, for a row whose times are not measured."""

    optimizer_steps: int = Field(description="number of completed optimizer steps")
    micro_steps: int = Field(description="number of completed micro-steps")
    planned_micro_steps: int = Field(description="micro-steps of the whole training, as with --length as-taught")


class StageTimestamps(Record):
    """Times at which a rank had started, began training, and ended training; seconds since 1970.

    A rank (a training process) first imports its libraries and opens the device, then builds the model and reads data.
    If it fails before the training begins, began_at equals ended_at.
    """

    started_at: float = Field(description="when the libraries were imported and the device was open")
    began_at: float = Field(description="when model and data were ready")
    ended_at: float = Field(description="when the last step had ended")
    steady_from: float | None = Field(default=None, description="when the warm-up had ended; None: it did not end")
    steady_until: float | None = Field(default=None, description="when the last timed step had ended")


class StageTimes(Record):
    """Durations of the stages of a row, in seconds. The durations add up to elapsed_s."""

    start_s: float = Field(description="time to start processes, import libraries and open the device")
    build_s: float = Field(description="time to build the model and read data")
    train_s: float = Field(description="time of the steps")
    end_s: float = Field(description="time to write the measurements and end the processes")


class Progress(Record):
    """Progress of a running row, stored in progress.json until the row has a result.

    step: optimizer step, from 0. micro_steps: number of completed micro-steps. planned_micro_steps: maximum number of
    micro-steps. Memory in GiB.
    """

    phase: Phase
    step: int
    micro_steps: int
    planned_micro_steps: int
    allocated_gib: float | None = None
    memory: Memory = Memory()
    device: Device | None = None
    left_s: float | None = Field(
        default=None, description="remaining time, estimated from the micro-steps so far; None before the first"
    )


class Failure(Record):
    """Where and how a row failed."""

    phase: Phase = Field(description="phase in which the row failed")
    step: int | None = Field(default=None, description="optimizer step, from 0; None: before the first")
    micro_step: int | None = Field(default=None, description="micro-step within the optimizer step, from 0")
    rank: int = Field(default=0, description="rank that failed first")
    requested_gib: float | None = Field(default=None, description="size of the allocation that failed; None: not known")
    kind: str = Field(description="class of the exception, or the signal")
    message: str = Field(description="message of the exception, or the most informative line of the log")
    where: str = Field(default="", description="innermost frame of this project's code, and the last library call")
    log: tuple[str, ...] = Field(default=(), description="last lines of the log, if the row ended with an error")


class Measured(Record):
    """Measurements of a row's training, over all ranks, or of one of its ranks."""

    rank: int = Field(default=0, description="number of the process among all processes of the row")
    outcome: Outcome = Field(description="oom: out of GPU memory; host_oom: out of host memory; rejected: not started")
    reason: str = Field(description="reason for the outcome, in one line")
    failure: Failure | None = Field(default=None, description="None for a row that fits")
    device: Device = Field(description="device that was used")
    memory: Memory = Field(default=Memory(), description="memory of the device")
    speed: Speed | None = Field(
        default=None, description="speed of training; None if too few steps were completed, and on a shared GPU"
    )
    steps: StepCounts | None = Field(default=None, description="on a shared GPU: numbers of steps; else None")
    losses: tuple[float, ...] = Field(default=(), description="loss of each micro-step")
    parameters: int | None = Field(default=None, description="parameters of the model, shared tensors counted once")
    trainable_parameters: int | None = Field(default=None, description="parameters that have gradients")
    weights_commit: str | None = Field(
        default=None,
        description="version of the weights on the Hugging Face hub; None: the weights are from a folder, or random",
    )
    data_commit: str | None = Field(
        default=None,
        description="version of the data set on the Hugging Face hub; None: the data set is from elsewhere",
    )
    max_tokens: int | None = Field(default=None, description="tokens of the longest padded text of a batch")
    resumed_at_step: int | None = Field(
        default=None,
        description="optimizer steps in the checkpoint from which the row resumed; the result counts only later steps; "
        "None: not resumed",
    )
    gpu_s: float | None = Field(
        default=None,
        description="seconds from opening the GPU to the end of the rank; of a row: summed over ranks; None on a CPU",
    )
    timestamps: StageTimestamps | None = Field(
        default=None,
        validation_alias=AliasChoices("timestamps", "moments"),
        description="when each stage began; None: not reported",
    )

    @property
    def step_counts(self) -> Speed | StepCounts | None:
        """Return the record that has the numbers of steps; None if too few steps were completed."""
        return self.speed or self.steps

    @field_validator("outcome", mode="before")
    @classmethod
    def _read_former_outcome(cls, value: object) -> object:
        return FORMER_OUTCOMES.get(value, value) if isinstance(value, str) else value


class Result(Measured):
    """The result of one row (result.json).

    For several ranks, ``ranks`` has the measurements of each. The row's memory is that of the rank with the highest
    peak, and its speed that of the slowest rank. The row's losses are means over the ranks. The row's failure is the
    first failure.
    """

    schema_version: Literal[1] = Field(default=SCHEMA_VERSION, description="version of this schema")
    spec: RowSpec = Field(description="specification of the row")
    fingerprint: str = Field(description="SHA-256 of the specification, hexadecimal")
    code: str = Field(description="SHA-256 of the training code, hexadecimal")
    versions: dict[str, str] = Field(default={}, description="versions of the packages that were used")
    git_commit: str | None = Field(default=None, description="commit of the checkout; None outside one")
    image: str | None = Field(default=None, description="id of the container image that the row ran in")
    command: str = Field(default="", description="command line of the run")
    started_at: str = Field(default="", description="UTC, ISO 8601")
    elapsed_s: float = Field(default=0.0, description="time from start to end, imports included")
    times: StageTimes | None = Field(
        default=None, description="durations of the row's stages; None if the ranks reported no timestamps"
    )
    steady_interval_s: tuple[float, float] | None = Field(
        default=None,
        validation_alias=AliasChoices("steady_interval_s", "steady_s"),
        description="start and end of the steps after the warm-up, seconds from the row's start as in telemetry.csv",
    )
    telemetry: dict[str, float] = Field(default={}, description="means and maxima of telemetry.csv")
    ranks: tuple[Measured, ...] = Field(default=(), description="each rank's measurements; empty for one process")
    predicted: bool = Field(default=False, description="true: a prediction; nothing was measured")

    @property
    def emulated(self) -> bool:
        """Return whether the device is a GPU that is not the row's card and emulates that card."""
        return self.device.kind == "cuda" and self.device.card != self.spec.card


def read_result(path: Path) -> Result:
    """Return the result in ``path``. Raises InputError if it cannot be read or has another schema version."""
    return _validated_result(_read(path), str(path))


def read_results(path: Path) -> dict[str, Result]:
    """Return the results in ``path``, one JSON object per line, by row id. Raises InputError as for one result."""
    lines = _read(path).splitlines()
    results = [_validated_result(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]
    return {result.spec.row: result for result in results}


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _validated_result(text: bytes, where: str) -> Result:
    try:
        return Result.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        why = f"not a result of schema version {SCHEMA_VERSION} ({key}: {error_message(problem)})"
        raise InputError(f"{where}: {why}; restore the file, or run the row again") from None


def read_progress(row_folder: Path) -> Progress | None:
    """Return the progress of the row; None if it has not reported any yet."""
    try:
        return Progress.model_validate_json(read_bytes(row_folder / PROGRESS_FILE))
    except (OSError, ValidationError):
        return None
