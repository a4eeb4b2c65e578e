"""The export of the history to MLflow. MLflow's own client reads the result, in separate processes that have MLflow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.cli.app import main
from experiments.history.database import open_history
from experiments.history.series import read_series
from experiments.system.files import CODE_FOLDER
from tests.support.results.semesters import RUN
from tests.support.services.mlflow_packages import mlflow_folder

READ = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient(tracking_uri=sys.argv[1])
found = [run for one in client.search_experiments() for run in client.search_runs([one.experiment_id])]
print(json.dumps([{"name": run.info.run_name, "status": run.info.status, "id": run.info.run_id,
    "tags": run.data.tags, "params": run.data.params, "metrics": run.data.metrics} for run in found]))
"""


@pytest.fixture(scope="module")
def packages() -> Path:
    return mlflow_folder()


@pytest.fixture
def python(packages, tmp_path):
    """Run Python with MLflow in an empty folder; return the ended process."""
    paths = os.pathsep.join([str(CODE_FOLDER), str(packages)])

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": paths, "MLFLOW_DISABLE_TELEMETRY": "true"}
        command = [sys.executable, *map(str, words)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


@pytest.fixture
def recorded_run(tmp_path, monkeypatch):
    """Record a stored run in the history below the empty folder, in this process, which is faster."""
    monkeypatch.chdir(tmp_path)
    assert main(["history", "record", str(RUN)]) == 0


@pytest.fixture
def testbed(python):
    def run(*words: object) -> subprocess.CompletedProcess[str]:
        return python("-m", "experiments", *words)

    return run


def test_the_client_of_mlflow_reads_back_every_measured_value_and_status_once(recorded_run, testbed, python, tmp_path):
    first = testbed("history", "--mlflow", "exported")
    assert (first.returncode, first.stderr) == (0, "1 run added to MLflow\n")
    assert testbed("history", "--mlflow", "exported").stderr == "0 runs added to MLflow\n"
    with open_history(tmp_path / "results/history.db") as database:
        (series,) = read_series(database)
    (recorded,) = series.runs
    runs = json.loads(python("-c", READ, f"sqlite:///{tmp_path}/exported/mlflow.db").stdout)
    assert {run["status"] for run in runs} == {"FINISHED"}
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run["tags"]]
    assert parent["name"] == recorded.run_id
    assert parent["tags"]["mlflow.source.git.commit"] == recorded.commit
    statuses = {name: status for name, status in parent["tags"].items() if name.startswith("statement/")}
    assert sorted(statuses.values()) == sorted(one.status for one in recorded.verdicts.values())
    rows = {run["params"]["row"]: run for run in runs if run is not parent}
    assert rows.keys() == {row for row, _ in recorded.facts}
    assert {run["tags"]["mlflow.parentRunId"] for run in rows.values()} == {parent["id"]}
    figures = {(row, name): value for row, run in rows.items() for name, value in run["metrics"].items()}
    assert figures == {key: one.value for key, one in recorded.measured.items()}
    assert not (tmp_path / "mlruns").exists()


def test_a_target_that_cannot_be_used_is_reported_in_one_line_without_its_password(recorded_run, testbed, tmp_path):
    (tmp_path / "file").write_text("")
    for target in ("http://user:pass-word@127.0.0.1:9", "file/folder", "nothing://user:pass-word@there"):
        done = testbed("history", "--mlflow", target)
        assert done.returncode == 2, done.stderr
        assert "pass-word" not in done.stdout + done.stderr
        assert "--mlflow" in done.stderr
        assert "Traceback" not in done.stderr


def test_without_mlflow_the_extra_to_install_is_named(recorded_run, capsys):
    assert main(["history", "--mlflow", "exported"]) == 2
    assert "pip install 'llm-testbed[mlflow]'" in capsys.readouterr().err
