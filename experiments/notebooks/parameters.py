"""The parameters of row.ipynb, with which a row is run. Each is a plain value; AS_STATED stands for the lab's value."""

from collections.abc import Mapping
from typing import Any

from experiments.errors import InputError, unknown_name_error
from experiments.run_options import RunOptions
from experiments.runners.resolve import resolve
from experiments.suites.mistakes import unsupported_settings
from experiments.suites.row_spec import CHOICES, DERIVED_SETTING, RowSpec
from experiments.suites.settings import Settings
from experiments.suites.suite import suite_named
from experiments.suites.yaml_schema import validate
from provision.hardware.local import this_machine

AS_STATED = "as stated"
SETTINGS = tuple(name for name in Settings.model_fields if name != DERIVED_SETTING)
PARAMETERS = (*CHOICES, *SETTINGS)
PLAIN_TYPES = (str, int, float, list, tuple, dict)


def parameters_in(variables: Mapping[str, Any], hidden: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters among a notebook's variables; ``hidden`` are variables that every notebook has.

    Raises InputError for a plain value that is not a parameter, such as a misspelled one.
    """
    for name in variables.keys() - hidden.keys() - {*PARAMETERS}:
        if not name.startswith("_") and isinstance(variables[name], PLAIN_TYPES):
            raise unknown_name_error("parameter", name, PARAMETERS)
    return {name: variables[name] for name in PARAMETERS}


def spec_from_parameters(parameters: Mapping[str, Any], base: RowSpec | None = None) -> RowSpec:
    """Return the row with these parameters.

    base: the row that has all other values; None: the lab's row on this machine.

    Raises InputError for the first parameter that is not allowed.
    """
    choices = {name: parameters[name] for name in CHOICES}
    base = base.model_copy(update=choices) if base else stated_row(choices)
    where = f"{base.suite}/{base.row}"
    changed = {name: parameters[name] for name in SETTINGS if parameters[name] != AS_STATED}
    settings = validate(Settings, base.settings.model_dump(exclude={DERIVED_SETTING}) | changed, where)
    own_model = base.model if settings.model == base.settings.model else None
    spec = validate(RowSpec, dict(base) | {"settings": settings, "model": own_model}, where)
    for problem in unsupported_settings(spec.settings, spec.base_model):
        raise InputError(f"{where}: {problem.text}")
    return spec


def stated_row(choices: Mapping[str, Any]) -> RowSpec:
    """Return the row that ``choices`` select, with the lab's settings; 'auto' is resolved for this machine."""
    suite = suite_named(choices["suite"])
    named = {name: choices[name] for name in CHOICES if name not in ("suite", "row")}
    options = resolve(RunOptions(suite=suite.suite, rows=(choices["row"],), **named), suite, this_machine())
    settings = suite.settings(suite.row(choices["row"]), options.card)
    resolved = named | {"card": options.card, "size": options.size}
    facts = {"suite": suite.suite, "recipe_version": suite.version, "row": choices["row"], **resolved}
    return validate(RowSpec, facts | {"settings": settings, "model": suite.model_in_suite(settings)}, suite.suite)
