"""The options of a run: every list of options is generated from RunOptions or compared with it."""

import inspect
import re
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import MISSING, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from experiments.cli.reproduce import reproduce_command
from experiments.cli.run import run
from experiments.errors import InputError
from experiments.report.compare import compare
from experiments.report.write import write_report
from experiments.results.run_folder import Run, RunFolder
from experiments.run_options import (
    IDENTITY_OPTIONS,
    OPTION_USES,
    RECORDED_OPTIONS,
    SHOWN_OPTIONS,
    RunOptions,
    default_run_id,
)
from experiments.runners.plan import continue_run
from experiments.suites.row_spec import RowSpec
from experiments.suites.suite import suite_named, suite_names, suites_in_group
from experiments.system.files import CODE_FOLDER
from experiments.system.options import fields_with_options
from tests.support.results import in_memory
from tests.support.results.handwritten import tiny_run

OPTIONS = {field.name: option for field, option in fields_with_options(RunOptions)}
NO_OPTION = {"suite", "command"}
ORIGIN = {"schema_version", "recipe_version", "started_at", "git_commit", "host"}


def other_value(name: str):
    """Return a value of the option that is not its default."""
    kind = RunOptions.__dataclass_fields__[name]
    allowed = [one for one in getattr(kind.type, "__args__", ()) if one is not type(None)]
    if allowed and isinstance(allowed[0], str):
        return next(one for one in reversed(allowed) if one not in (kind.default, "auto"))
    plain: Any = allowed[0] if allowed else kind.type
    return {str: "another", int: 3, Path: Path("another"), bool: not kind.default, float: 3.0}[plain]


def test_every_option_has_a_default_a_help_text_and_its_uses():
    for field in fields(RunOptions):
        assert field.default is not MISSING, field.name
        assert (field.name in OPTIONS) == (field.name not in NO_OPTION)
        assert field.name in NO_OPTION or OPTIONS[field.name].help.endswith("."), field.name
    assert OPTION_USES.keys() == {field.name for field in fields(RunOptions)}


def test_the_file_run_json_has_exactly_the_options_that_are_marked_as_recorded():
    assert Run.model_fields.keys() - ORIGIN == {*RECORDED_OPTIONS}


def test_every_option_that_identifies_a_run_or_is_shown_is_recorded():
    assert {*IDENTITY_OPTIONS, *SHOWN_OPTIONS} <= {*RECORDED_OPTIONS}


def test_the_specification_of_a_row_has_every_option_that_changes_it():
    shared = RowSpec.model_fields.keys() & Run.model_fields.keys()
    assert shared == {"suite", "recipe_version", "card", "size", "length", "weights", "data", "data_sha256", "input"}


@pytest.mark.parametrize("command", [run, reproduce_command])
def test_the_commands_accept_every_option(command):
    left_out = {"site", "profile", "account", "in_container", "share_gpus", "predict_only"}
    left_out = left_out if command is reproduce_command else set()
    parameters = inspect.signature(command).parameters
    assert OPTIONS.keys() - left_out <= parameters.keys()
    for name in OPTIONS.keys() - left_out - {"rows"}:
        assert parameters[name].default == RunOptions.__dataclass_fields__[name].default


def test_the_makefile_has_a_variable_for_every_option_that_takes_a_value():
    text = (CODE_FOLDER / "Makefile").read_text()
    variables = re.findall(r"^(?:SITE|ROW)_OPTIONS +:= (.*)$", text, re.MULTILINE)
    expected = {
        option.name_of(name)
        for name, option in OPTIONS.items()
        if name not in ("rows", "results") and RunOptions.__dataclass_fields__[name].type is not bool
    }
    assert set(" ".join(variables).split()) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("run-single crd=a100_80gb", "unknown variable: crd; allowed: CACHE .* card "),
        ("predict row=baseline", "row=baseline needs suite="),
    ],
)
def test_make_rejects_values_with_special_characters(words, message):
    ran = subprocess.run(
        ["make", "--dry-run", *words.split()], cwd=CODE_FOLDER, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert re.search(message, ran.stderr)


def test_make_ends_with_exit_code_2_and_prints_the_exit_code_of_the_command(tmp_path):
    """Fake: an environment whose python ends with 3."""

    def make(*words: str) -> subprocess.CompletedProcess[str]:
        command = ["make", f"CACHE={tmp_path}", *words]
        return subprocess.run(command, cwd=CODE_FOLDER, capture_output=True, text=True, check=False)

    python = Path(re.search("environment: (.*),", make("help").stdout)[1]) / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 3\n")
    python.chmod(0o755)
    ran = make("status", "--old-file=env")
    assert ran.returncode == 2
    assert re.search(r": status\] Error 3$", ran.stderr, re.MULTILINE)


def two_runs(name: str) -> tuple[Run, Run]:
    """Return two runs that differ only in this option."""
    one, value = in_memory.run("a"), "h100_94gb" if name == "card" else other_value(name)
    if value == getattr(one, name):
        value = RunOptions.__dataclass_fields__[name].default
    return one, one.model_copy(update={name: value})


@pytest.mark.parametrize("name", [name for name in IDENTITY_OPTIONS if name != "suite"])
def test_a_run_with_other_options_does_not_continue_in_the_folder_of_an_earlier_run(tmp_path, name):
    before, now = two_runs(name)
    folder = RunFolder(tmp_path)
    folder.write_run(before)
    with pytest.raises(InputError, match=f"but {name} is now"):
        continue_run(folder, now, in_memory.suite())


@pytest.mark.parametrize("name", SHOWN_OPTIONS)
def test_comparisons_show_different_options(tmp_path, monkeypatch, name):
    monkeypatch.setattr(RunFolder, "suite", lambda folder: in_memory.suite())
    a, b = folders = [RunFolder(tmp_path / side) for side in "ab"]
    for folder, one in zip(folders, two_runs(name), strict=True):
        folder.write_run(one)
    assert name.replace("_", " ") in [difference.what for difference in compare(a, b).differences]


def test_the_junit_file_has_every_option_that_is_shown(tmp_path):
    page = write_report(tiny_run(tmp_path)).page
    properties = ET.parse(page.with_name("junit.xml")).getroot().iter("property")
    assert {*SHOWN_OPTIONS} <= {one.get("name") for one in properties}


def test_the_default_run_id_differs_for_different_options():
    plain = replace(RunOptions(), suite="lab", card="a100_80gb", size="full")
    for name in IDENTITY_OPTIONS:
        if name != "data_sha256":
            assert default_run_id(replace(plain, **{name: other_value(name)})) != default_run_id(plain), name


def test_a_run_with_an_earlier_field_name_is_read(tmp_path):
    text = in_memory.run("a").model_dump_json().replace('"image_variant"', '"flavour"')
    assert Run.model_validate_json(text) == in_memory.run("a")


def test_no_code_contains_the_name_of_a_lab():
    code = [*CODE_FOLDER.glob("experiments/**/*.py"), *CODE_FOLDER.glob("provision/**/*.py"), CODE_FOLDER / "Makefile"]
    words = [name if "_" in name else f'"{name}' for name in suite_names()]
    found = [(path.name, word) for path in code for word in words if word in path.read_text()]
    assert found == []


def test_the_group_both_has_every_lab_of_the_groups_single_and_multi():
    assert [suite.suite for suite in suites_in_group("single")] == ["single_gpu_blip2", "single_gpu_litgpt"]
    assert [suite.suite for suite in suites_in_group("multi")] == ["multi_gpu_litgpt", "slurm_hf_trainer"]
    assert [name for name in suite_names() if suite_named(name).group == "extra"] == ["beyond", "ladder"]
    assert suites_in_group("both") == suites_in_group("single") + suites_in_group("multi")


@pytest.mark.parametrize("target", ["lease", "reproduce"])
@pytest.mark.parametrize("given", ["", "mine"])
def test_make_passes_the_name_of_a_lease_to_the_command(target, given):
    make = ["make", "--no-print-directory", "-n", target, *([f"name={given}"] if given else [])]
    planned = subprocess.run(make, cwd=CODE_FOLDER, capture_output=True, text=True, check=True).stdout
    command = planned.splitlines()[-1].split()
    assert [after for word, after in pairwise(command) if word == "--name"] == ([given] if given else [])
