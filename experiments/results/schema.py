"""The schema of result.json: the outcome and the measurements of a row."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from experiments.errors import InputError
from experiments.suites.row_spec import RowSpec

SCHEMA_VERSION: Literal[1] = 1
RESULT_FILE = "result.json"
RESULTS_FILE = "results.jsonl"
SPEC_FILE = "spec.json"
PROGRESS_FILE = "progress.json"
MEASURED_FILE = "measured.json"
LOG_FILE = "log.txt"
TELEMETRY_FILE = "telemetry.csv"
NOTEBOOK_FILE = "notebook.ipynb"
RANK_FOLDER = "rank-{}"
CHECKPOINTS_FOLDER = "trainer"

Outcome = Literal["fits", "oom", "host_oom", "error", "timeout", "refused"]
Phase = Literal["load", "forward", "backward", "optimizer step", "save"]
Point = Literal["before forward", "after forward", "after backward", "after optimizer step"]
ERRORS: tuple[Outcome, ...] = ("error", "timeout", "host_oom")
START_LIMIT_S = 600.0
"""Time that a row has to start; its own time limit counts from then, or from an earlier end of its start."""


class Record(BaseModel):
    """Base of all stored records: frozen, unknown keys are rejected. NaN is the text "NaN" in JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Device(Record):
    """The device of a row. memory_gib: total memory as PyTorch reports it, None on a CPU.

    card: the device's own name in cards.yaml. cap_gib: the limit set on the allocator to emulate a smaller card (None:
    no limit).
    """

    kind: Literal["cuda", "cpu"]
    name: str
    count: int = 1
    memory_gib: float | None = None
    card: str | None = None
    cap_gib: float | None = None
    driver: str | None = None
    cuda: str | None = None
    compute_capability: str | None = None
    topology: str | None = None
    host_cpus: int
    host_memory_gib: float


class Snapshot(Record):
    """Memory at one point of one micro-step, GiB. activations is allocated less params, grads and optimizer.

    step counts optimizer steps from 0, micro_step the micro-steps inside it. peak and reserved: the maximum so far.
    On a CPU the sizes are those of live tensor storages, without reserved memory.
    """

    step: int
    micro_step: int
    point: Point
    params_gib: float
    grads_gib: float
    optimizer_gib: float
    optimizer_cpu_gib: float
    activations_gib: float
    allocated_gib: float
    peak_gib: float
    reserved_gib: float | None = None


class Memory(Record):
    """Memory of the whole row, GiB. The peaks are those up to the end, or up to the failure."""

    snapshots: tuple[Snapshot, ...] = ()
    peak_gib: float | None = None
    peak_by_phase_gib: dict[Phase, float] = {}
    reserved_gib: float | None = None
    host_peak_gib: float | None = Field(default=None, description="maximum resident memory of the trainer")


class Speed(Record):
    """Time of the measured micro-steps, those after the first two optimizer steps; samples are those of all ranks.

    step_s: median time of an optimizer step with all its micro-steps. micro_step_s: that of a micro-step without an
    optimizer step, if there are any. spread: interquartile range of the micro-steps' times over their median.
    tflop_per_sample: executed operations, recomputation included.
    """

    optimizer_steps: int
    micro_steps: int
    planned_micro_steps: int = Field(description="of the training at full length")
    measured_micro_steps: int
    micro_step_s: float
    step_s: float
    spread: float
    samples_per_s: float
    tflop_per_sample: float | None = None
    tflops_per_s: float | None = None
    peak_share: float | None = Field(
        default=None, description="of the dense peak of the device itself, for the row's data type"
    )
    train_s: float = Field(description="of the steps that this run took")
    communication_share: float | None = Field(
        default=None, description="of a step's time: communication kernels, with their waiting time"
    )
    exposed_communication_share: float | None = Field(
        default=None, description="of a step's time: communication kernels while no other kernel runs"
    )
    gpu_idle_share: float | None = Field(default=None, description="of a step's time: no kernel runs on the GPU")


class Moments(Record):
    """When a trainer had started, began to train, and stopped training; seconds since 1970.

    It starts with its imports and its device, then it builds the model and reads data. A training that failed before
    it began has began_at = ended_at.
    """

    started_at: float
    began_at: float
    ended_at: float


class Times(Record):
    """Seconds of the stages of a row, which add up to elapsed_s.

    start: processes, imports, device. build: model and data. train: its steps. end: reports and the end of processes.
    """

    start_s: float
    build_s: float
    train_s: float
    end_s: float


class Progress(Record):
    """Progress of a running row (progress.json, rewritten until the result is there).

    micro_steps of planned_micro_steps are done; planned is an upper bound. Memory in GiB.
    """

    phase: Phase
    step: int
    micro_steps: int
    planned_micro_steps: int
    allocated_gib: float | None = None
    memory: Memory = Memory()
    device: Device | None = None
    left_s: float | None = Field(
        default=None, description="from the time of the micro-steps so far; None before the first"
    )


class Failure(Record):
    """Where and how a row failed. requested_gib: the allocation that failed, if known."""

    phase: Phase
    step: int | None = None
    micro_step: int | None = None
    rank: int = 0
    requested_gib: float | None = None
    kind: str
    message: str


class Measured(Record):
    """Measurements of the trainer, or of one of its ranks.

    gpu_s: time from the first use of the device to the end. weights_commit, data_commit: versions of pretrained weights
    and of the data set on the hub; None if they are not from the hub.
    """

    rank: int = 0
    outcome: Outcome
    reason: str = Field(description="in one line")
    failure: Failure | None = None
    device: Device
    memory: Memory = Memory()
    speed: Speed | None = None
    losses: tuple[float, ...] = ()
    parameters: int | None = None
    trainable_parameters: int | None = None
    weights_commit: str | None = None
    data_commit: str | None = None
    max_tokens: int | None = Field(default=None, description="longest padded text of a batch")
    resumed_at_step: int | None = Field(
        default=None, description="optimizer steps of an earlier start; others are counted from here"
    )
    gpu_s: float | None = None
    moments: Moments | None = None


class Result(Measured):
    """One row's result.json.

    A row with several ranks has each in ``ranks``. The row's memory is that of the rank with the highest peak, its
    speed that of the slowest rank, its losses are means over the ranks, its failure is the first one.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    spec: RowSpec
    fingerprint: str
    code: str = Field(description="SHA-256 of the training code, hexadecimal")
    versions: dict[str, str] = {}
    git_commit: str | None = None
    image: str | None = Field(default=None, description="id of the container image that it ran in")
    command: str = ""
    started_at: str = Field(default="", description="UTC, ISO 8601")
    elapsed_s: float = 0.0
    times: Times | None = Field(default=None, description="None if the trainer did not report its own")
    telemetry: dict[str, float] = Field(default={}, description="means and maxima of telemetry.csv")
    ranks: tuple[Measured, ...] = Field(default=(), description="by rank; empty for a row with one process")
    predicted: bool = Field(default=False, description="predicted without the device; nothing was measured")

    @property
    def emulated(self) -> bool:
        """Return whether the device is another GPU than the row's card, which it emulates."""
        return self.device.kind == "cuda" and self.device.card != self.spec.card


def read_result(path: Path) -> Result:
    """Return the result in ``path``. Raises InputError if it cannot be read or has another schema version."""
    return _validated(_read(path), str(path))


def read_results(path: Path) -> dict[str, Result]:
    """Return the results in ``path``, one JSON object per line, by row id. Raises InputError as for one result."""
    lines = _read(path).splitlines()
    results = [_validated(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]
    return {result.spec.row: result for result in results}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _validated(text: bytes, where: str) -> Result:
    try:
        return Result.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        why = f"not a result of schema version {SCHEMA_VERSION} ({key}: {problem['msg']})"
        raise InputError(f"{where}: {why}") from None


def read_progress(row_folder: Path) -> Progress | None:
    """Return the progress of the row; None if it has not reported any yet."""
    try:
        return Progress.model_validate_json((row_folder / PROGRESS_FILE).read_bytes())
    except (OSError, ValidationError):
        return None
