"""Commands on a user's own suite: check, list, run, and evaluate after its file was deleted."""

import json

import pytest

from experiments.cli.app import main
from experiments.suites.suite import SUITES_VARIABLE, TEMPLATE_FILE, suite_named
from tests.support.runners.fake_runner import FakeRunner


@pytest.fixture
def testbed(capsys, machine, tmp_path, monkeypatch):
    """Run the command line in a folder that has the template as my_lab.yaml; return exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_lab.yaml").write_text(TEMPLATE_FILE.read_text())

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setenv(SUITES_VARIABLE, "")
        suite_named.cache_clear()
        code = main(arguments)
        return code, *capsys.readouterr()

    yield run
    suite_named.cache_clear()


def test_the_template_is_printed_and_checked(testbed):
    code, printed, _ = testbed("check", "--template")
    assert (code, printed) == (0, TEMPLATE_FILE.read_text())
    code, printed, _ = testbed("check", "my_lab.yaml")
    assert code == 0
    assert "my_lab.yaml: suite my_lab, version 1: no mistakes" in printed
    assert "3 rows: full, sgd, lora" in printed
    assert "claim/adapters-need-little-state" in printed


def test_each_error_in_a_suite_file_is_one_line_with_its_line_number_and_the_exit_code_is_2(testbed, tmp_path):
    text = TEMPLATE_FILE.read_text().replace("  workers: 0\n", "").replace("optimizer: sgd", "optimizr: sgd")
    (tmp_path / "my_lab.yaml").write_text(text)
    code, out, err = testbed("check", "my_lab.yaml")
    assert (code, out) == (2, "")
    missing, unknown = err.splitlines()
    assert missing == "my_lab.yaml:28: row 'full' on a100_80gb and 5 more places: key 'workers' is missing"
    line = text.partition("optimizr")[0].count("\n") + 1
    assert unknown.startswith(f"my_lab.yaml:{line}: row 'sgd' on a100_80gb and 1 more place: unknown key 'optimizr'")
    assert unknown.endswith("; did you mean optimizer?")
    code, out, _ = testbed("check", "my_lab.yaml", "--json")
    (found,) = json.loads(out)
    assert code == 2
    assert {one["says"].partition(";")[0] for one in found["mistakes"]} == {
        "key 'workers' is missing",
        "unknown key 'optimizr'",
    }


@pytest.mark.parametrize("arguments", [(), ("my_lab.yaml", "--template")])
def test_the_command_check_needs_a_file_or_the_template(testbed, arguments):
    code, _, err = testbed("check", *arguments)
    assert (code, err) == (2, "testbed: check: needs either the file of a suite or --template\n")


def test_a_suite_file_can_be_listed_and_run_and_its_run_evaluated_after_the_file_was_deleted(testbed, tmp_path):
    code, listed, _ = testbed("list", "--suite-file", "my_lab.yaml", "--json")
    assert [row["row"] for row in json.loads(listed)] == ["full", "sgd", "lora"]
    code, _, err = testbed("run", "--suite-file", "my_lab.yaml", "--size", "tiny")
    assert code in (0, 1), err
    assert FakeRunner.ran == ["full", "sgd", "lora"]
    (tmp_path / "my_lab.yaml").unlink()
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "results" / "latest").resolve().rename(tmp_path / "elsewhere" / "run")
    for command in ("evaluate", "report"):
        code, _, err = testbed(command, str(moved))
        assert code in (0, 1), err
        assert "Traceback" not in err
    assert "SGD keeps no optimizer state" in (moved / "report.html").read_text()


def test_a_suite_file_is_used_in_place_of_the_copy_in_the_run(testbed, tmp_path):
    testbed("run", "--suite-file", "my_lab.yaml", "--size", "tiny")
    path = tmp_path / "my_lab.yaml"
    path.write_text(path.read_text().replace("SGD keeps no", "SGD does without"))
    results = str((tmp_path / "results" / "latest").resolve())
    assert "SGD does without" not in testbed("evaluate", results, "--json")[1]
    assert "SGD does without" in testbed("evaluate", results, "--suite-file", "my_lab.yaml", "--json")[1]


def test_a_run_with_an_invalid_copy_of_its_suite_is_reported_in_one_line(testbed, tmp_path):
    testbed("run", "--suite-file", "my_lab.yaml", "--size", "tiny")
    folder = (tmp_path / "results" / "latest").resolve()
    (folder / "suite.yaml").write_text("[" * 100_000)
    code, _, err = testbed("evaluate", str(folder))
    assert code == 2
    assert err.count("\n") == 1
    assert "suite.yaml: the YAML document is too large" in err


@pytest.mark.parametrize("command", ["list", "predict", "run", "fit", "reproduce"])
def test_an_invalid_path_is_reported_in_one_line(testbed, command):
    code, _, err = testbed(command, "--suite-file", "nowhere.yaml")
    assert code == 2
    assert err.count("\n") == 1
    assert "nowhere.yaml: no suite file found; allowed: " in err


def test_the_schema_of_a_suite_refers_to_settings_wherever_settings_are_allowed(testbed):
    schema = json.loads(testbed("schema", "suite")[1])
    assert schema["properties"]["common"]["$ref"] == "#/$defs/Settings"
    row = schema["$defs"]["Row"]["properties"]
    assert row["settings"]["$ref"] == row["per_card"]["additionalProperties"]["$ref"] == "#/$defs/Settings"
    assert "batch_size" in schema["$defs"]["Settings"]["properties"]
    assert schema["$defs"]["Settings"]["required"] == []
    assert all(one.get("description") for one in schema["properties"].values())
    assert testbed("schema", "suit")[2].startswith("testbed: unknown schema 'suit'; allowed: suite, ")


def test_the_template_and_the_labs_are_valid_according_to_the_schema(testbed):
    jsonschema = pytest.importorskip("jsonschema")
    from experiments.suites.suite import LABS
    from experiments.suites.yaml_schema import read_yaml

    schema = json.loads(testbed("schema", "suite")[1])
    for path in (TEMPLATE_FILE, *LABS.glob("*.yaml")):
        jsonschema.validate(read_yaml(path), schema)
