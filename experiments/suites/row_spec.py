"""One row as it is run: what the trainer reads."""

import hashlib
import json
from typing import Literal, Self

from pydantic import Field, model_validator

from experiments.errors import unknown
from experiments.suites.choices import Input, Length, Size, Weights
from experiments.suites.models import Model, models
from experiments.suites.settings import Settings
from experiments.suites.yaml_schema import StrictModel

SPEC_VERSION: Literal[1] = 1


class RowSpec(StrictModel):
    """One row as it is run: what the trainer reads, and all that its result depends on besides the code."""

    spec_version: Literal[1] = SPEC_VERSION
    suite: str
    recipe_version: int
    row: str
    card: str
    size: Size
    length: Length
    weights: Weights
    data: str = Field(description="'synthetic', 'hub', or the folder of a prepared data set")
    data_sha256: str | None = None
    input: Input
    settings: Settings
    model: Model | None = Field(default=None, description="the row's own, which models.yaml does not have")

    @model_validator(mode="after")
    def _model_is_known(self) -> Self:
        if self.model is None and self.settings.model not in models():
            raise unknown("model", self.settings.model, models(), f"row {self.row!r}")
        return self

    @property
    def base_model(self) -> Model:
        """The model that the row is about."""
        return self.model or models()[self.settings.model]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything the row sets, hexadecimal: two runs of one fingerprint ran the same experiment."""
        facts = self.model_dump(mode="json", exclude=None if self.model else {"model"})
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
