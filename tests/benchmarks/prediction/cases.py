"""The training runs of cases.yaml as rows, which are both run by the worker and predicted."""

from pathlib import Path
from typing import Any

from experiments.prediction.predict import peak_spec
from experiments.suites.row_spec import RowSpec
from experiments.suites.settings import Settings
from experiments.suites.yaml_schema import read_yaml, validate

FILE = Path(__file__).with_name("cases.yaml")
SUITE, CARD = "prediction", "h200_141gb"
LORA = {"alpha": 32, "dropout": 0.05}


def cases() -> list[RowSpec]:
    """Return every case, at full size for two optimizer steps. Raises InputError for an invalid file."""
    data = read_yaml(FILE)
    return [_spec_of_case(name, {**data["common"], **own}) for name, own in data["cases"].items()]


def _spec_of_case(name: str, settings: dict[str, Any]) -> RowSpec:
    given = settings.pop("input", "as-taught")
    if "lora" in settings:
        settings["lora"] = LORA | settings["lora"]
    own = validate(Settings, settings, f"{FILE.name}: case {name!r}")
    return peak_spec(SUITE, name, CARD, own, input=given)
