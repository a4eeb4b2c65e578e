"""Models: published weights and architectures, by name."""

from functools import cache
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from experiments.suites.model_limits import describe_impossible_size
from experiments.suites.yaml_schema import CATALOG, StrictModel, read_yaml, validate


class Model(StrictModel):
    """A model of models.yaml: the source of its weights, and its architecture for random weights.

    With `family: transformers`, the architecture is a complete config.json with its model_type. The keys hub,
    parameters and source are then optional.
    """

    family: Literal["blip2-opt", "blip2-t5", "llama", "gpt-neo", "transformers"] = Field(
        description="architecture of the model; transformers: any model that transformers can build from a config.json"
    )
    hub: str = Field(default="", description="id of the weights on the Hugging Face hub; empty: not published")
    parameters: NonNegativeInt = Field(
        default=0, description="number of parameters, shared tensors counted once; 0: not known yet"
    )
    litgpt: str | None = Field(default=None, description="name of the model's configuration in LitGPT")
    architecture: dict[str, Any] = Field(description="keys of the model's config.json")
    vision_layers: PositiveInt | None = Field(
        default=None, description="layers of a BLIP-2 model's image encoder; None: as published"
    )
    source: str = Field(default="", description="where the values of architecture come from")

    @model_validator(mode="after")
    def _require_keys(self) -> Self:
        if self.family == "transformers":
            if "model_type" not in self.architecture:
                raise ValueError("architecture: the key 'model_type' of config.json is missing")
        elif not (self.parameters and self.source):
            raise ValueError(f"a model of family {self.family} needs parameters and source")
        if problem := describe_impossible_size(self.architecture):
            raise ValueError(f"architecture: {problem}")
        return self


@cache
def models() -> dict[str, Model]:
    """Return every model of catalog/models.yaml by name."""
    path = CATALOG / "models.yaml"
    return {name: validate(Model, facts, f"{path.name}: model {name!r}") for name, facts in read_yaml(path).items()}
