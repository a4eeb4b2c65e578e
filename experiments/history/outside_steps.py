"""The time of rows outside of their training steps, as a sum of named parts, such as the compilation of the model.

Each part belongs to a stage of the row. The stages are the start (a fork of the warm process, CUDA's context), the
construction of the model, the first steps (only the time by which they are slower than later steps), and the end.
`python -m tests.benchmarks.wall_times.outside_steps` fits the seconds of the parts to stored runs and writes them into
outside_steps.json.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Literal, Self

from pydantic import Field

from experiments.results.schema import Record
from experiments.suites.attention_kernels import kernel_properties
from experiments.suites.cards import card_named
from experiments.suites.settings import Settings
from provision.files import read_bytes

FILE = Path(__file__).with_suffix(".json")
BILLION = 1e9

Stage = Literal["start", "build", "first steps", "end"]
StepKind = Literal["texts", "images in 32 bit", "images in 16 bit"]
PartCounts = Mapping[str, float]
"""Factor of the seconds of each part, by its name: 0 or 1, or the number of the model's parameters in billions."""


class OutsideSteps(Record):
    """Seconds that the parts of runs and rows take, without the steps of the training."""

    prepare_s: float = Field(description="once per run: time from the start of the run to the start of its first row")
    libraries_s: float = Field(description="once per warm process: the import of the libraries that rows need")
    between_rows_s: float = Field(description="for each row: its notebook, and the check that its GPU is free")
    job_s: float = Field(description="for each row on a leased node: its job, its container and the download")
    parts: dict[str, float] = Field(description="seconds of each part of a row")
    longer_share: dict[StepKind, float] = Field(
        description="where the mean number of steps at length verdict is: 0: lowest possible number, 1: highest"
    )
    error_share: float = Field(description="relative error of the time outside of the steps, upwards and downwards")
    runs: tuple[str, ...] = Field(description="the runs that the seconds were fitted to")

    @classmethod
    def read(cls) -> Self:
        """Return the fitted seconds."""
        return cls.model_validate_json(read_bytes(FILE))

    def stage_s(self, parts: PartCounts) -> float:
        """Return the seconds of a stage. parts: factor of each part of the stage (see ``row_parts``)."""
        return sum(count * self.parts.get(part, 0.0) for part, count in parts.items())

    def row_s(self, parts: Mapping[Stage, PartCounts], *stages: Stage) -> float:
        """Return the seconds of ``stages`` together. parts: factor of each part, for each stage of the row."""
        return sum(self.stage_s(parts[stage]) for stage in stages)

    def around_row_s(self, is_job: bool) -> float:
        """Return the seconds that a row needs before and after its process. is_job: whether it is a job in a queue."""
        return self.job_s + self.libraries_s if is_job else self.between_rows_s

    def once_s(self, is_job: bool) -> float:
        """Return the seconds that a run needs only once. is_job: whether each of its rows is a job in a queue."""
        return self.prepare_s + (0.0 if is_job else self.libraries_s)


@cache
def outside_steps() -> OutsideSteps:
    """Return the fitted seconds. Each process reads them once."""
    return OutsideSteps.read()


def step_kind(settings: Settings) -> StepKind:
    """Return the kind of a row's steps, which determines how much their times vary.

    Steps on texts vary because texts have different lengths. Steps on images in 16 bit are often limited by the host;
    in 32 bit, by the GPU.
    """
    if settings.engine != "lightning":
        return "texts"
    return "images in 32 bit" if settings.precision == "32-true" else "images in 16 bit"


def row_parts(settings: Settings, parameters: int, card: str) -> dict[Stage, dict[str, float]]:
    """Return the factor of each part in each stage of a row (see ``PartCounts``), without parts whose factor is 0.

    parameters: number of parameters of the model. The import of bitsandbytes belongs to different stages: LitGPT builds
    its optimizer before the first step, Lightning and the Trainer in the first step, and the libraries of the Trainer
    import bitsandbytes at the start. cuDNN compiles its attention kernels anew for each length of the texts.
    """
    billions, engine, has_several_ranks = parameters / BILLION, settings.engine, settings.ranks > 1
    bitsandbytes = settings.uses_bitsandbytes and engine != "hf_trainer"
    in_build = settings.quantization is not None or engine == "litgpt"
    counts: dict[Stage, dict[str, float]] = {
        "start": {"fork": 1, "launcher": has_several_ranks, "libraries of the Trainer": engine == "hf_trainer"},
        "build": {
            f"model of {engine}": 1,
            "parameters": billions,
            "bitsandbytes": bitsandbytes and in_build,
            "quantization": billions * (settings.quantization is not None),
            "compiler": settings.compile,
        },
        "first steps": {
            f"first steps of {engine}": 1,
            f"first steps of {engine}, several ranks": has_several_ranks,
            "bitsandbytes": bitsandbytes and not in_build,
            f"cuDNN's attention of {engine}": _has_cudnn_attention(settings, card),
            f"compilation of {engine}": settings.compile,
            "compilation with LoRA": settings.compile and settings.lora is not None,
            "activations in host memory": settings.activation_offload,
            "optimizer on the CPU": settings.optimizer == "adamw_cpu",
            "DeepSpeed's offload": billions * settings.offloads_by_deepspeed,
        },
        "end": {
            "end": 1,
            "end of several ranks": has_several_ranks,
            "end of the compiler": settings.compile,
            "end of activations in host memory": settings.activation_offload,
            "end of an optimizer on the CPU": settings.optimizer == "adamw_cpu",
        },
    }
    return {stage: {part: count for part, count in parts.items() if count} for stage, parts in counts.items()}


def _has_cudnn_attention(settings: Settings, card: str) -> bool:
    return settings.precision.startswith("bf16") and kernel_properties(card_named(card)).cudnn_width > 0
