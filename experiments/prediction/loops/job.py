"""What a training program of this folder trains, as its only argument."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from experiments.prediction.custom import Attention, LoopOptimizer, LoopPrecision, Quantized
from experiments.suites.models import Model


class LoopLora(BaseModel):
    """Low-rank adapters. dropout: None: 0.05, or 0 where peft allows none."""

    model_config = ConfigDict(frozen=True)
    r: int
    targets: tuple[str, ...] | Literal["all-linear"]
    dropout: float | None = None


class LoopJob(BaseModel):
    """One training. batch: samples per GPU and micro-step; seq, target_seq: tokens per text and per target."""

    model_config = ConfigDict(frozen=True)
    model: Model
    model_class: str | None = None
    batch: int = 1
    seq: int = 512
    target_seq: int | None = None
    accumulate: int = 1
    precision: LoopPrecision = "32-true"
    optimizer: LoopOptimizer = "adamw"
    attention: Attention | None = None
    quantization: Quantized | None = None
    checkpointing: bool = False
    lora: LoopLora | None = None
    fsdp: bool = False
