"""The job of a program of this folder: what the program trains or generates, as JSON in its only argument."""

import sys
import traceback
from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, ConfigDict

from experiments.errors import InputError
from experiments.prediction.custom import Attention, LoopOptimizer, LoopPrecision, QuantizedBits
from experiments.suites.models import Model
from experiments.training.failures import first_line


class LoopLora(BaseModel):
    """Low-rank adapters. ``dropout`` None means 0.05, or 0 if peft supports no dropout for the layers."""

    model_config = ConfigDict(frozen=True)
    r: int
    targets: tuple[str, ...] | Literal["all-linear"]
    dropout: float | None = None


class LoopJob(BaseModel):
    """Settings of one training, or of one text generation.

    batch: samples per GPU and micro-step. seq, target_seq: tokens per text and per target text; None: a default.
    packing: texts in each row of ``seq`` tokens; None: each row is one text. accumulate: micro-steps per optimizer
    step. clip_norm: maximum norm of the gradients; 0: gradients are not clipped; None: the default of the loop.
    offload: keep activations in host memory. chunked_loss: compute the output layer and the loss for a few tokens at a
    time. step_in_backward: update each parameter in the backward pass. fsdp: version of FSDP; None: no FSDP.

    Three fields are for text generation only. gpus: number of GPUs that share the model's layers. new_tokens: tokens
    after a prompt of ``seq`` tokens. kv_cache: keep the keys and values of earlier tokens.
    """

    model_config = ConfigDict(frozen=True)
    model: Model
    model_class: str | None = None
    batch: int = 1
    seq: int | None = None
    target_seq: int | None = None
    packing: int | None = None
    accumulate: int = 1
    precision: LoopPrecision = "32-true"
    optimizer: LoopOptimizer = "adamw"
    clip_norm: float | None = None
    attention: Attention | None = None
    quantization: QuantizedBits | None = None
    checkpointing: bool = False
    offload: bool = False
    chunked_loss: bool = False
    step_in_backward: bool = False
    lora: LoopLora | None = None
    fsdp: Literal[1, 2] | None = None
    gpus: int = 1
    new_tokens: int = 1
    kv_cache: bool = True


def run_program(run_job: Callable[[LoopJob], None]) -> None:
    """Call ``run_job`` with the job in the program's argument.

    Raises InputError, after the traceback, if a library cannot run the model with these settings.
    """
    job = LoopJob.model_validate_json(sys.argv[1])
    try:
        run_job(job)
    except InputError:
        raise
    except Exception as error:
        traceback.print_exc()
        name = job.model.architecture.get("model_type", job.model.family)
        raise InputError(
            f"{name}: does not run with these settings ({type(error).__name__}: {first_line(error)}); "
            "the traceback is above"
        ) from None
