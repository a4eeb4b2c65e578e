"""The specification of a row: the input of the trainer."""

import hashlib
import json
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeFloat, model_validator

from experiments.errors import unknown_name_error
from experiments.suites.choices import Input, Length, Size, Weights
from experiments.suites.models import Model, models
from experiments.suites.settings import Settings
from experiments.suites.yaml_schema import StrictModel

SPEC_VERSION: Literal[1] = 1
CHOICES = ("suite", "row", "card", "size", "length", "weights", "data", "input")
"""Options with which a row is run, in addition to its settings."""
DERIVED_SETTING = "global_batch_size"
"""The setting that is computed from others: batch_size, accumulate and the number of ranks."""

LATER_SETTINGS = (
    "accelerator",
    "prompt_length",
    "optimizer_in_backward",
    "activation_offload",
    "chunked_loss",
    "fused_optimizer",
    "packing",
    "compile",
)
"""Settings that are newer than some stored results. A fingerprint omits them if they have their defaults.

So the fingerprints of earlier results stay valid.
"""


class RowSpec(StrictModel):
    """The specification of a row: everything that its result depends on, except the code."""

    spec_version: Literal[1] = Field(default=SPEC_VERSION, description="version of this schema")
    suite: str = Field(description="name of the suite")
    recipe_version: int = Field(description="version of the suite")
    row: str = Field(description="id of the row")
    card: str = Field(description="GPU model that the row targets")
    size: Size = Field(description="full: the lab's model; tiny: a tiny model of the same architecture")
    length: Length = Field(
        description="as-taught: all steps; verdict: enough for the evaluation; peak: enough for the peak of memory"
    )
    weights: Weights = Field(description="random, or pretrained from the Hugging Face hub")
    data: str = Field(description="'synthetic', 'hub', or the folder of a prepared data set")
    data_sha256: str | None = Field(default=None, description="SHA-256 of the prepared data set, hexadecimal")
    input: Input = Field(description="input of the model; with-image: captioning models also receive the image")
    settings: Settings = Field(description="all settings of the row")
    steady_s: NonNegativeFloat = Field(
        default=0.0, description="with --length verdict: minimum duration of the steps after the warm-up, seconds"
    )
    model: Model | None = Field(default=None, description="a model that is not in models.yaml")

    @model_validator(mode="after")
    def _model_is_known(self) -> Self:
        if self.model is None and self.settings.model not in models():
            raise unknown_name_error("model", self.settings.model, models(), f"row {self.row!r}")
        return self

    @property
    def base_model(self) -> Model:
        """Return the row's model, from this specification or from models.yaml."""
        return self.model or models()[self.settings.model]

    @property
    def parameters(self) -> dict[str, Any]:
        """Return the parameters of the row by name, as plain values: CHOICES, and settings without DERIVED_SETTING."""
        choices = {name: getattr(self, name) for name in CHOICES}
        return choices | self.settings.model_dump(mode="json", exclude={DERIVED_SETTING})

    @property
    def fingerprint(self) -> str:
        """Return the SHA-256 of the specification, hexadecimal: equal fingerprints mean the same experiment."""
        facts = self.model_dump(mode="json", exclude=None if self.model else {"model"})
        del facts["steady_s"]  # it only changes the number of steps
        if self.model and self.model.vision_layers is None:
            del facts["model"]["vision_layers"]  # added later: earlier results stay valid
        for name in LATER_SETTINGS:
            if facts["settings"][name] == Settings.model_fields[name].default:
                del facts["settings"][name]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
