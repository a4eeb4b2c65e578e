"""Models: published weights and architectures, by name."""

from functools import cache
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeInt, model_validator

from experiments.suites.yaml_schema import CATALOG, StrictModel, checked, read_yaml


class Model(StrictModel):
    """A model of models.yaml: where its weights are and the architecture that random weights are built from.

    Of family transformers the architecture is a whole configuration with its model_type, as a config.json has it; such
    a model may leave open what only models.yaml states.
    """

    family: Literal["blip2-opt", "blip2-t5", "llama", "gpt-neo", "transformers"]
    hub: str = Field(default="", description="empty: no published weights are known")
    parameters: NonNegativeInt = Field(default=0, description="counted, shared tensors once; 0: not known yet")
    litgpt: str | None = None
    architecture: dict[str, Any]
    source: str = ""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.family == "transformers":
            if "model_type" not in self.architecture:
                raise ValueError("architecture: the key 'model_type' is missing, which config.json has")
        elif not (self.hub and self.parameters and self.source):
            raise ValueError(f"a model of family {self.family} needs hub, parameters and source")
        return self


@cache
def models() -> dict[str, Model]:
    """Every model by its name, as catalog/models.yaml states it."""
    path = CATALOG / "models.yaml"
    return {name: checked(Model, facts, f"{path.name}: model {name!r}") for name, facts in read_yaml(path).items()}
