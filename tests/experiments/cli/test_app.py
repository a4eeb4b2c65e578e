"""The command line: output and exit codes."""

import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from datetime import timedelta
from types import SimpleNamespace

import pytest

from experiments.cli.fit import fit
from experiments.cli.lease import lease, slots
from experiments.cli.lease_options import LeaseOptions
from experiments.cli.predict import predict
from experiments.cli.reproduce import reproduce_command
from experiments.cli.run import run
from experiments.prediction.script.options import ScriptOptions
from experiments.system import packages
from experiments.system.files import CODE_FOLDER
from experiments.system.options import fields_with_options
from experiments.system.packages import EXTRAS
from provision.choices import DISK_IMAGE, VGPU_DISK_IMAGE
from tests.support.runners.fake_runner import SUITE, FakeRunner
from tests.support.services.sshd import new_key


@pytest.mark.parametrize("arguments", [["run"], ["run", SUITE, "--size", "huge"], ["nope"], ["run", SUITE, "--nope"]])
def test_wrong_usage_ends_with_exit_code_2(testbed, arguments):
    code, _, err = testbed(*arguments)
    assert code == 2
    assert err.startswith("testbed: ")
    assert err.count("\n") == 1


def test_suites_and_rows_are_listed(testbed):
    assert SUITE in testbed("list")[1]
    assert "xxl-activation-checkpointing" in testbed("list", SUITE)[1]
    suites = {suite["suite"]: suite for suite in json.loads(testbed("list", "--json")[1])}
    assert suites[SUITE]["rows"] == 15
    rows = json.loads(testbed("list", SUITE, "--card", "h100_94gb", "--json")[1])
    assert rows[0]["settings"]["batch_size"] == 64
    assert testbed("list", "--card", "h100_94gb")[0] == 2
    assert testbed("list", SUITE, "--card", "nope")[0] == 2


def test_schemas_are_printed(testbed):
    schemas = json.loads(testbed("schema")[1])
    assert set(schemas) == {"suite", "result", "run", "verdict", "predictions"}
    assert "outcome" in schemas["result"]["properties"]


def test_help_is_quick_and_imports_no_large_library():
    code = (
        "import sys; from experiments.cli.app import main; main(['--help']);"
        "print([name for name in ('torch', 'pydantic', 'plotly', 'IPython') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=CODE_FOLDER, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def test_commands_and_the_worker_do_not_import_torch():
    modules = (
        "experiments.cli.app, experiments.pipeline, experiments.report, experiments.cli.tables,"
        "experiments.notebooks.row, experiments.runners.slurm.job, experiments.training.worker"
    )
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=CODE_FOLDER, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_version_is_printed(testbed):
    with (CODE_FOLDER / "pyproject.toml").open("rb") as file:
        version = tomllib.load(file)["project"]["version"]
    assert testbed("--version") == (0, f"testbed {version}\n", "")


@pytest.mark.parametrize(("typed", "completed"), [("testbed pred", "predict"), ("testbed run --prof", "--profile")])
def test_the_shell_completes_commands_and_options(typed, completed):
    variables = {"_TESTBED_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    command = [sys.executable, "-m", "experiments"]
    done = subprocess.run(
        command, cwd=CODE_FOLDER, env=os.environ | variables, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == [completed]


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_missing_package_is_reported_in_one_line_with_what_to_install(testbed, monkeypatch, tmp_path, extra):
    package = EXTRAS[extra][0]

    def raise_error(self, rows):
        raise ModuleNotFoundError(name=f"{package}.inner")

    monkeypatch.setattr(FakeRunner, "run", raise_error)
    code, _, err = testbed("run", SUITE, "--row", "xxl", "--results", tmp_path)
    assert (code, err) == (
        2,
        f"testbed: package {package!r} is not installed; pip install 'llm-testbed[{extra}]'\n",
    )


def test_running_rows_and_predicting_need_the_packages_of_training(testbed, monkeypatch, tmp_path):
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    code, _, err = testbed("run", SUITE, "--row", "xxl", "--results", tmp_path, "--no-predict")
    assert (code, err) == (2, "testbed: package 'torch' is not installed; pip install 'llm-testbed[train]'\n")
    assert testbed("predict", f"{SUITE}/xxl")[::2] == (code, err)


def test_each_extra_that_a_message_names_has_the_missing_package():
    with (CODE_FOLDER / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    distributions = {"blazarclient": "python-blazarclient", "chi": "python-chi", "openstack": "openstacksdk"}
    distributions |= {
        "PIL": "pillow",
        "mlflow": "mlflow-skinny",
        "ansible_runner": "ansible-runner",
        "textual_serve": "textual-serve",
    }
    for extra, modules in EXTRAS.items():
        declared = {re.split(r"[<>=]", line)[0] for line in extras[extra]}
        for module in {*modules} - {"keystoneauth1"}:
            assert distributions.get(module, module) in declared


@pytest.mark.parametrize(("group", "expected"), [("single", (2, 1)), ("multi", (2, 4)), ("both", (3, 4))])
def test_a_lease_has_the_length_and_nodes_that_its_labs_need(group, expected):
    requirements = LeaseOptions(for_=group).requirements()
    assert (requirements.length / timedelta(hours=1), requirements.gpus) == expected


@pytest.mark.parametrize(
    ("node_type", "image", "booted"),
    [
        ("gpu_a100_pcie", None, DISK_IMAGE),
        ("g1.h100.vgpu.1g.12gb", None, VGPU_DISK_IMAGE),
        ("g1.h100.vgpu.1g.12gb", "my-image", "my-image"),
    ],
)
def test_a_flavor_with_a_virtual_gpu_boots_the_vgpu_image_unless_an_image_is_requested(
    node_type, image, booted, tmp_path
):
    site = SimpleNamespace(user=lambda: "cc")
    key = new_key(tmp_path / "key")
    assert LeaseOptions(node_type=node_type).request(site, None, key, image).image == booted


@pytest.mark.parametrize("arguments", [("--batch", "1"), ("--lora-r", "4"), ("--activation-checkpointing",)])
def test_an_option_of_a_custom_training_needs_a_model_even_if_given_with_its_default(testbed, arguments):
    code, _, err = testbed("predict", f"{SUITE}/xxl", *arguments)
    assert (code, err) == (2, f"testbed: {arguments[0]}: needs --model; a row has its own settings\n")


def test_options_are_shared_by_commands_and_declared_once():
    """`predict` and `fit` have the same options; `lease` and `reproduce` have all options of `slots`."""
    taken = {one.__name__: set(inspect.signature(one).parameters) for one in (predict, fit, slots, lease, run)}
    of_a_script = {field.name for field, _ in fields_with_options(ScriptOptions)}
    assert taken["predict"] - of_a_script - {"words"} == taken["fit"] - of_a_script - {"rows", "batch_flag"}
    of_a_lease = {field.name for field, _ in fields_with_options(LeaseOptions)}
    assert of_a_lease <= taken["slots"] & taken["lease"] & set(inspect.signature(reproduce_command).parameters)
