"""A custom training: any model with any settings, as the options of `testbed predict` and `fit` describe it."""
# ruff: noqa: RUF009 (the fields are declared by a function that returns dataclasses.field)

from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.suites.choices import Optimizer, Precision, Strategy
from experiments.system.options import option

if TYPE_CHECKING:
    from experiments.suites.row_spec import RowSpec

MODEL_HELP = "a name of models.yaml, the path of a config.json, or an id on the hub (org/name)"


@dataclass(frozen=True)
class CustomTraining:
    """Options of one custom training. batch: samples per GPU and micro-step. seq: tokens per text."""

    model: str = option("", f"Custom training of this model: {MODEL_HELP}.", metavar="MODEL")
    card: str = option("", "GPU model; default for rows of a suite: all GPU models of the row.", metavar="CARD")
    batch: int = option(1, "Samples per GPU and micro-step.")
    seq: int = option(512, "Tokens per text.")
    accumulate: int = option(1, "Micro-steps per optimizer step.")
    devices: int = option(1, "Number of GPUs.")
    precision: Precision = option("32-true", "Precision of weights and arithmetic.")
    optim: Optimizer | None = option(None, "Optimizer; default: adamw, with DeepSpeed deepspeed_cpu.")
    strategy: Strategy = option("auto", "How GPUs share the work; auto: DDP on several GPUs.")
    activation_checkpointing: bool = option(
        False, "Recompute activations in the backward pass.", flag="--activation-checkpointing"
    )
    lora_r: int | None = option(None, "Rank of LoRA adapters; default: all weights are trained.")
    lora_targets: str | None = option(None, "Layers with adapters, comma-separated, or all-linear.")

    @property
    def spec(self) -> "RowSpec":
        """Return the row to predict: two optimizer steps on texts of one length.

        Raises InputError for contradicting options, and for a model that cannot be read.
        """
        from experiments.prediction.custom_spec import row_spec

        return row_spec(self)
