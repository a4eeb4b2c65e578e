"""The command line: output and exit codes."""

import hashlib
import inspect
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from datetime import timedelta
from types import SimpleNamespace

import pytest

from experiments.cli.app import main
from experiments.cli.fit import fit
from experiments.cli.lease import lease, slots
from experiments.cli.lease_options import LeaseOptions
from experiments.cli.predict import predict
from experiments.cli.reproduce import reproduce_command
from experiments.cli.run import run
from experiments.pipeline import run_suite
from experiments.prediction.script.options import ScriptOptions
from experiments.report import write
from experiments.run_options import RunOptions
from experiments.suites import suite
from experiments.suites.models import models
from experiments.suites.yaml_schema import read_yaml
from experiments.system import packages
from experiments.system.files import CODE
from experiments.system.options import options_of
from experiments.system.packages import EXTRAS
from provision.choices import IMAGE, VGPU_IMAGE
from provision.hardware import local
from tests.support import fake_worker
from tests.support import rows as house
from tests.support.evidence import EVIDENCE
from tests.support.pipelines import SLURM, SUITE, FakeRunner
from tests.support.sshd import new_key
from tests.support.views import Watched


@pytest.fixture
def testbed(capsys, machine):
    """Runs the command line on a machine without GPU; exit code, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    """A copy of the labs folder in which one text of the suite is replaced by another."""
    folder = tmp_path / "recipes"
    shutil.copytree(suite.LABS, folder)

    def forget() -> None:
        for kept in (suite.suite_named, models, read_yaml):
            kept.cache_clear()

    def change(old: str, new: str) -> None:
        forget()
        path = folder / f"{SUITE}.yaml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    monkeypatch.setattr(suite, "LABS", folder)
    yield change
    forget()


@pytest.fixture
def made(machine, tmp_path):
    """The folder of a finished run of two rows."""
    return run_suite(RunOptions(SUITE, rows=("reduced-batch", "xxl"), results=tmp_path / "made"), Watched()).folder


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([SUITE, "--row", "nope"], f"suite {SUITE}: unknown row 'nope'; allowed: baseline, reduced-batch"),
        ([SUITE, "--versions", "as-taught"], "--versions as-taught: allowed on leased machines only (--site chameleon"),
        (["nope"], "unknown suite 'nope'; allowed: multi_gpu_litgpt, single_gpu_blip2"),
        ([SUITE, "--card", "nope"], f"suite {SUITE}: unknown card 'nope'; allowed: a100_80gb, h100_94gb"),
        ([SUITE, "--site", "nope"], "unknown site 'nope'; allowed: local"),
        ([SUITE, "--size", "full"], "no GPU: full size needs one; size tiny runs anywhere"),
        ([SUITE, "--weights", "pretrained"], "weights pretrained: a tiny model has none; allowed: random"),
        ([SUITE, "--data", "/nope"], "--data /nope: no such folder or archive"),
        ([SUITE, "--data", "https://data.test/set.zip"], "a URL needs --data-sha256"),
        ([SUITE, "--run-id", "../nope"], "--run-id ../nope: allowed: letters, digits"),
        ([SUITE, "--run-id", "latest"], "--run-id latest: allowed: letters, digits"),
        ([SUITE, SLURM, "--run-id", "mine"], "--run-id mine: allowed with one suite only"),
        ([SUITE, SLURM, "--row", "nope"], f"--row nope: none of the suites {SUITE}, {SLURM} has this row"),
        ([SUITE, SLURM, "--card", "a100_80gb"], f"suite {SLURM}: unknown card 'a100_80gb'; allowed: v100_32gb"),
        ([SUITE, "--gpus-per-node", "0"], "--gpus-per-node 0: allowed: 1 and more"),
        (
            [SLURM, "--gpus-per-node", "1"],
            "--gpus-per-node 1: row 'neo-4gpu-ddp' of suite slurm_hf_trainer would have 1 rank, but ddp needs more;"
            " allowed: 2 and more",
        ),
        ([SLURM, "--gpus-per-node", "3"], "global_batch_size = 8: cannot be divided by accumulate 1 on 3 device(s)"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(testbed, tmp_path, arguments, says):
    code, out, err = testbed("run", *arguments, "--results", tmp_path / "results")
    assert code == 2
    assert says in err
    assert err.count("\n") == 1
    assert "Traceback" not in out + err


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("batch_size: 32", "bacth_size: 32", "row 'baseline' on a100_80gb: unknown key 'bacth_size'; allowed: "),
        ("precision: 32-true", "percision: 32-true", "row 'baseline' on a100_80gb: unknown key 'percision'; allowed: "),
        ("batch_size: 32", "batch_size: -1", "row 'baseline' on a100_80gb: batch_size = -1: "),
        ("batch_size: 32", "global_batch_size: 30, accumulate: 4", "global_batch_size = 30: cannot be divided by"),
        ("optimizer: adamw", "optimizer: adam", "optimizer = 'adam'"),
    ],
)
def test_a_wrong_recipe_is_refused_with_its_place(testbed, recipes, tmp_path, old, new, says):
    recipes(old, new)
    code, _, err = testbed("run", SUITE, "--results", tmp_path / "results")
    assert code == 2
    assert err.startswith(f"testbed: {SUITE}.yaml: ")
    assert says in err
    assert err.count("\n") == 1


def test_results_of_another_recipe_version_are_refused_with_a_remedy(testbed, recipes, made):
    recipes("\nversion: 1\n", "\nversion: 2\n")
    code, _, err = testbed("run", SUITE, "--results", made.parent)
    assert code == 2
    assert "has results of version 1 of suite single_gpu_blip2, which is now version 2; choose another --run-id" in err


def test_a_device_smaller_than_the_card_is_refused(testbed, monkeypatch, tmp_path):
    monkeypatch.setattr(local, "this_machine", lambda: house.node(house.T4))
    code, _, err = testbed("run", SUITE, "--size", "full", "--results", tmp_path)
    assert (code, err) == (2, "testbed: device NVIDIA T4 has 14.6 GiB, a100_80gb needs 79.2 GiB\n")


def test_no_disk_space_is_refused(testbed, monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    code, _, err = testbed("run", SUITE, "--results", tmp_path)
    assert code == 2
    assert "no disk space" in err


def test_an_archive_with_a_wrong_checksum_is_refused(testbed, tmp_path):
    (tmp_path / "set.zip").write_bytes(b"")
    code, _, err = testbed("run", SUITE, "--data", tmp_path / "set.zip", "--data-sha256", "ab")
    assert code == 2
    assert "its SHA-256 is e3b0c442" in err


@pytest.mark.parametrize("arguments", [["run"], ["run", SUITE, "--size", "huge"], ["nope"], ["run", SUITE, "--nope"]])
def test_wrong_usage_exits_with_2(testbed, arguments):
    code, _, err = testbed(*arguments)
    assert code == 2
    assert err.startswith("testbed: ")
    assert err.count("\n") == 1


def test_a_run_shows_verdicts_and_where_the_report_is(testbed, tmp_path):
    code, out, err = testbed("run", SUITE, "--row", "reduced-batch", "--results", tmp_path)
    assert (code, err) == (0, "")
    assert f"report: {tmp_path}/{SUITE}-a100_80gb-tiny-verdict/report.html" in out
    assert "not evaluated" in out


def test_several_suites_end_with_their_counts_and_reports(testbed, tmp_path):
    _, out, _ = testbed("run", SUITE, SLURM, "--row", "reduced-batch", "--row", "neo-1gpu", "--results", tmp_path)
    folders = [f"{SUITE}-a100_80gb-tiny-verdict", f"{SLURM}-v100_32gb-tiny-verdict"]
    counts = out[out.rindex("suite ") :]
    cells = {line.split()[0]: line.split()[1:] for line in counts.splitlines() if len(line.split()) == 5}
    evaluated = [[int(cell) for cell in cells[suite]] for suite in (SUITE, SLURM)]
    assert [int(cell) for cell in cells["all"]] == [sum(column) for column in zip(*evaluated, strict=True)]
    assert [line for line in counts.splitlines() if line.startswith("report: ")] == [
        f"report: {tmp_path}/{folder}/report.html" for folder in folders
    ]


def test_the_worst_of_several_suites_is_the_exit_code(testbed, monkeypatch, tmp_path):
    outcomes = {SUITE: "fits", SLURM: "error"}
    made = fake_worker.made
    monkeypatch.setattr(fake_worker, "made", lambda spec, _: made(spec, outcomes[spec.suite]))
    rows = ("--row", "reduced-batch", "--row", "neo-1gpu")
    assert testbed("run", SUITE, SLURM, *rows, "--results", tmp_path)[0] == 3
    assert testbed("run", SLURM, SUITE, *rows, "--results", tmp_path)[0] == 3


def test_what_broke_is_said_last_with_its_reason(testbed, monkeypatch, tmp_path):
    made = fake_worker.made
    monkeypatch.setattr(fake_worker, "made", lambda spec, _: made(spec, "error"))
    _, out, _ = testbed(
        "run", SUITE, SLURM, "--row", "reduced-batch", "--row", "neo-1gpu", "--results", tmp_path, "--no-predict"
    )
    said = " ".join(out[out.index("report: ") :].split())
    assert f"{SLURM}: error: One GPU: fits (fake worker: error)" in said


def test_a_run_as_json_has_nothing_else_on_standard_output(testbed, tmp_path):
    code, out, err = testbed("run", SUITE, "--row", "reduced-batch", "--results", tmp_path, "--json")
    (done,) = json.loads(out)
    assert done["exit_code"] == code == 0
    assert done["run"]["command"] == f"testbed run {SUITE} --row reduced-batch --results {tmp_path} --json"
    assert "size tiny for a100_80gb, on a machine of the tests" in err


@pytest.mark.parametrize(("outcome", "expected"), [("fits", 0), ("oom", 1), ("error", 3)])
def test_the_exit_code_tells_the_verdict(testbed, monkeypatch, made, outcome, expected):
    result = made / SUITE / "reduced-batch" / "result.json"
    data = json.loads(result.read_text())
    data["outcome"] = outcome
    data["spec"]["size"] = "full"
    data["device"]["kind"] = "cuda"
    result.write_text(json.dumps(data))
    (made / SUITE / "xxl" / "result.json").unlink()
    (made / "SHA256SUMS").unlink()
    assert testbed("evaluate", made)[0] == expected


def test_evaluating_as_json_gives_the_verdicts(testbed, made):
    code, out, _ = testbed("evaluate", made, "--json")
    (evaluated,) = json.loads(out)
    assert code == 0
    assert evaluated["evaluation"]["run"]["rows"] == ["reduced-batch", "xxl"]
    assert evaluated["changes"] == []


def test_runs_are_evaluated_together(testbed):
    one, two = (EVIDENCE / f"slurm_hf_trainer-a100_40gb-full-verdict{end}" for end in ("", "-2gpus"))
    statuses = []
    for folders in ((one,), (two,), (one, two), (two, one)):
        code, out, _ = testbed("evaluate", *folders, "--json")
        (evaluated,) = json.loads(out)
        statuses.append({verdict["id"]: verdict["status"] for verdict in evaluated["evaluation"]["verdicts"]})
        assert code == 0
    assert statuses[0]["claim/ddp-copies-the-model"] == statuses[1]["claim/ddp-copies-the-model"] == "not evaluated"
    assert statuses[2]["claim/ddp-copies-the-model"] == "pass"
    assert statuses[2] == statuses[3]
    assert statuses[2].keys() == statuses[0].keys() | statuses[1].keys()


def test_runs_of_different_cards_are_not_evaluated_together(testbed):
    folders = [EVIDENCE / f"slurm_hf_trainer-{end}" for end in ("a100_40gb-full-verdict", "v100_32gb-without-gpu")]
    code, _, err = testbed("evaluate", *folders)
    assert code == 2
    assert "v100_32gb" in err
    assert len(err.splitlines()) == 1


def test_what_is_no_run_cannot_be_evaluated_reported_or_compared(testbed, tmp_path):
    for arguments in (("evaluate", tmp_path), ("report", tmp_path), ("compare", tmp_path, tmp_path)):
        code, _, err = testbed(*arguments)
        assert code == 2
        assert "run's folder" in err


def test_a_report_is_written_anew(testbed, made):
    (made / "report.html").unlink()
    assert testbed("report", made) == (0, f"{made}/report.html\n", "")
    assert (made / "report.html").is_file()


def test_two_runs_compare(testbed, made):
    code, out, _ = testbed("compare", made, made, "--json")
    assert code == 0
    assert [row["row"] for row in json.loads(out)["rows"]] == ["reduced-batch", "xxl"]
    assert "Every statement has the same status in both runs." in testbed("compare", made, made)[1]


def test_a_comparison_can_be_written_as_a_page(testbed, made, tmp_path):
    page = tmp_path / "changes.html"
    code, _, err = testbed("compare", made, made, "--page", page)
    assert (code, err) == (0, f"page: {page}\n")
    assert "Nothing got worse or better." in page.read_text()
    code, _, err = testbed("compare", made, made, "--page", tmp_path)
    assert code == 2
    assert len(err.splitlines()) == 1


def test_a_report_evaluates_its_run_once_and_shows_what_changed(testbed, made, monkeypatch):
    verdicts = made / "verdict.json"
    verdicts.write_text(verdicts.read_text().replace('"status": "not evaluated"', '"status": "fail"', 1))
    counted = []
    once = write.evaluate_run
    monkeypatch.setattr(write, "evaluate_run", lambda *given: counted.append(given) or once(*given))
    code, out, err = testbed("report", made)
    assert (code, out, len(counted)) == (0, f"{made}/report.html\n", 1)
    assert "not evaluated" in err


def test_a_report_can_be_sent_as_an_archive(testbed, made):
    code, out, _ = testbed("report", made, "--zip")
    archive = made.resolve().with_name(f"{made.resolve().name}.zip")
    assert (code, out.splitlines()) == (0, [f"{made}/report.html", str(archive)])
    with zipfile.ZipFile(archive) as entries:
        names = {name.partition("/")[2] for name in entries.namelist()}
        sums = entries.read(f"{made.resolve().name}/SHA256SUMS").decode().splitlines()
        for line in sums:
            checksum, _, name = line.partition("  ")
            assert hashlib.sha256(entries.read(f"{made.resolve().name}/{name}")).hexdigest() == checksum
    links = re.findall(r'href="([^"#:]+)"', (made / "report.html").read_text())
    assert {"report.html", "verdict.json", "junit.xml", *links} <= names
    assert {line.partition("  ")[2] for line in sums} == names - {"SHA256SUMS"}


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


def test_what_breaks_exits_with_3(testbed, monkeypatch, tmp_path):
    def breaks(self, rows):
        raise RuntimeError("the floor gave way")

    monkeypatch.setattr(FakeRunner, "run", breaks)
    code, _, err = testbed("run", SUITE, "--results", tmp_path)
    assert code == 3
    assert "the floor gave way" in err


def test_help_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys; from experiments.cli.app import main; main(['--help']);"
        "print([name for name in ('torch', 'pydantic', 'plotly', 'IPython') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=CODE, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def test_nothing_but_the_trainer_loads_torch():
    rooms = (
        "experiments.cli.app, experiments.pipeline, experiments.report, experiments.cli.tables,"
        "experiments.notebooks.row, experiments.runners.slurm.job, experiments.training.worker"
    )
    code = f"import sys, {rooms}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=CODE, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_version_is_printed(testbed):
    with (CODE / "pyproject.toml").open("rb") as file:
        version = tomllib.load(file)["project"]["version"]
    assert testbed("--version") == (0, f"testbed {version}\n", "")


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_missing_package_is_one_line_that_says_what_to_install(testbed, monkeypatch, tmp_path, extra):
    package = EXTRAS[extra][0]

    def breaks(self, rows):
        raise ModuleNotFoundError(name=f"{package}.inner")

    monkeypatch.setattr(FakeRunner, "run", breaks)
    code, _, err = testbed("run", SUITE, "--row", "xxl", "--results", tmp_path)
    assert (code, err) == (
        2,
        f"testbed: package {package!r} is not installed; pip install 'llm-testbed[{extra}]'\n",
    )


def test_rows_and_predictions_need_the_packages_of_training(testbed, monkeypatch, tmp_path):
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    code, _, err = testbed("run", SUITE, "--row", "xxl", "--results", tmp_path, "--no-predict")
    assert (code, err) == (2, "testbed: package 'torch' is not installed; pip install 'llm-testbed[train]'\n")
    assert testbed("predict", f"{SUITE}/xxl")[::2] == (code, err)


def test_extras_have_the_packages_that_are_asked_for():
    with (CODE / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    distributions = {"blazarclient": "python-blazarclient", "chi": "python-chi", "openstack": "openstacksdk"}
    distributions |= {"PIL": "pillow", "ansible_runner": "ansible-runner"}
    for extra, modules in EXTRAS.items():
        declared = {re.split(r"[<>=]", line)[0] for line in extras[extra]}
        for module in {*modules} - {"keystoneauth1"}:
            assert distributions.get(module, module) in declared


def test_a_group_runs_its_labs(testbed, tmp_path):
    rows = ("--row", "tiny-baseline", "--row", "reduced-batch")
    _, out, _ = testbed("run", "--group", "single", *rows, "--results", tmp_path, "--json")
    assert [done["run"]["suite"] for done in json.loads(out)] == ["single_gpu_blip2", "single_gpu_litgpt"]
    assert testbed("run", SUITE, "--group", "single", "--results", tmp_path)[0] == 2


@pytest.mark.parametrize(("group", "expected"), [("single", (2, 1)), ("multi", (2, 4)), ("both", (3, 4))])
def test_a_lease_is_as_long_and_as_large_as_its_labs_need(group, expected):
    requirements = LeaseOptions(for_=group).requirements()
    assert (requirements.length / timedelta(hours=1), requirements.gpus) == expected


@pytest.mark.parametrize(
    ("node_type", "image", "booted"),
    [
        ("gpu_a100_pcie", None, IMAGE),
        ("g1.h100.vgpu.1g.12gb", None, VGPU_IMAGE),
        ("g1.h100.vgpu.1g.12gb", "my-image", "my-image"),
    ],
)
def test_the_disk_image_follows_the_flavor_or_the_option(node_type, image, booted, tmp_path):
    site = SimpleNamespace(user=lambda: "cc")
    key = new_key(tmp_path / "key")
    assert LeaseOptions(node_type=node_type).request(site, None, key, image).image == booted


@pytest.mark.parametrize("arguments", [("--batch", "1"), ("--lora-r", "4"), ("--activation-checkpointing",)])
def test_options_of_a_custom_training_need_a_model_even_with_their_default(testbed, arguments):
    code, _, err = testbed("predict", f"{SUITE}/xxl", *arguments)
    assert (code, err) == (2, f"testbed: {arguments[0]}: needs --model; a row has its own settings\n")


def test_options_are_shared_by_commands_and_declared_once():
    """Predict without a script, and fit, have the same options; lease and reproduce have all of slots."""
    taken = {one.__name__: set(inspect.signature(one).parameters) for one in (predict, fit, slots, lease, run)}
    of_a_script = {field.name for field, _ in options_of(ScriptOptions)}
    assert taken["predict"] - of_a_script - {"words"} == taken["fit"] - of_a_script - {"rows", "batch_flag"}
    of_a_lease = {field.name for field, _ in options_of(LeaseOptions)}
    assert of_a_lease <= taken["slots"] & taken["lease"] & set(inspect.signature(reproduce_command).parameters)
