"""The README of the suites describes every field and every file in the code."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from experiments import suites
from experiments.suites.cards import Card
from experiments.suites.models import Model
from experiments.suites.settings import Lora, Quantization, Settings
from experiments.suites.suite import Bounds, Check, Claim, Expectation, LeaseEstimate, ReferenceValue, Row, Scale, Suite

FOLDER = Path(suites.__path__[0])
TEXT = (FOLDER / "README.md").read_text()
SECTIONS: dict[str, type[BaseModel]] = {
    "Suite": Suite,
    "Lease": LeaseEstimate,
    "Row": Row,
    "Expected result": Expectation,
    "Reference value": ReferenceValue,
    "Claim": Claim,
    "Check": Check,
    "Bounds": Bounds,
    "Scale": Scale,
    "Settings": Settings,
    "Card": Card,
    "Model": Model,
}


def section(title: str) -> str:
    found = re.search(rf"^### {title}\n(.*?)(?=^##|\Z)", TEXT, re.S | re.M)
    assert found, title
    return found[1]


def field_meanings(title: str) -> dict[str, str]:
    """The meaning of each field in a section."""
    return dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", section(title), re.M))


@pytest.mark.parametrize("title", SECTIONS)
def test_every_field_of_a_suite_is_explained_in_the_order_of_the_schema(title: str) -> None:
    assert list(field_meanings(title)) == list(SECTIONS[title].model_fields)


@pytest.mark.parametrize(("field", "model"), [("lora", Lora), ("quantization", Quantization)])
def test_the_keys_of_nested_settings_are_in_the_readme(field: str, model: type[BaseModel]) -> None:
    assert re.findall(r"`(\w+)`", field_meanings("Settings")[field]) == list(model.model_fields)


@pytest.mark.parametrize("field", ["engine", "precision", "optimizer", "strategy", "launcher"])
def test_the_allowed_values_of_a_setting_are_in_the_readme(field: str) -> None:
    schema = Settings.model_json_schema()["properties"][field]
    assert set(re.findall(r"`([\w-]+)`", field_meanings("Settings")[field])) == set(schema["enum"])


def test_the_families_of_models_are_in_the_readme() -> None:
    families = Model.model_json_schema()["properties"]["family"]["enum"]
    assert re.findall(r"`([\w-]+)`", field_meanings("Model")["family"]) == families


def test_every_module_of_the_package_is_in_the_readme() -> None:
    modules = {path.name for path in FOLDER.glob("*.py")} - {"__init__.py"}
    assert {name for name in modules if f"`{name}`" not in TEXT} == set()


def test_links_in_the_readme_lead_to_existing_files() -> None:
    targets = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert targets
    assert [target for target in targets if not (FOLDER / target).is_file()] == []
