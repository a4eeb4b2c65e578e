"""Experiment trackers upload nothing in a traced script. Fake: the trackers, which read their documented variables."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.prediction.script.traced import trackers
from tests.support.services.mlflow_packages import mlflow_folder

UPLOAD = "import os\ndef upload(): open('uploads', 'a').write(__name__ + '\\n')\n"
TRACKERS = {
    # docs.wandb.ai: disabled "prevents any network communication", offline stores data locally
    "wandb": "def init(**_):\n    if os.environ.get('WANDB_MODE', 'online') not in ('offline', 'disabled'): upload()",
    # mlflow.org/docs: a URI of a folder is a local store
    "mlflow": "def start_run():\n    uri = os.environ.get('MLFLOW_TRACKING_URI', 'http://lab')\n"
    "    upload() if uri.startswith('http') else None",
    # comet.com/docs: start() creates an offline experiment for COMET_START_ONLINE=0
    # comet.com/docs: COMET_AUTO_LOG_DISABLE=1 is `disabled`, "disable all network communication", of an experiment
    "comet_ml": "def start(online=None):\n"
    "    default = os.environ.get('COMET_START_ONLINE', '1') not in ('0', 'false')\n"
    "    Experiment() if (default if online is None else online) else None\n"
    "class Experiment:\n"
    "    def __init__(self, api_key=None, disabled=False):\n"
    "        disabled or os.environ.get('COMET_AUTO_LOG_DISABLE') in ('1', 'true') or upload()\n"
    "class ExistingExperiment(Experiment): pass",
    # docs.neptune.ai: "async, disabled, or offline", before: "async, debug, offline, read-only, sync"
    "neptune": "def init_run():\n    if os.environ.get('NEPTUNE_MODE', 'async') in ('async', 'sync'): upload()",
    # clear.ml/docs: CLEARML_OFFLINE_MODE=1
    "clearml": "class Task:\n    def init():\n        if os.environ.get('CLEARML_OFFLINE_MODE', '0') != '1': upload()",
    # docs.swanlab.cn: cloud, local, offline, disabled; "case-sensitive"
    "swanlab": "def init():\n    if os.environ.get('SWANLAB_MODE', 'cloud') == 'cloud': upload()",
    # gradio-app/trackio: a Space or server is a parameter or a variable; without one, metrics are local
    "trackio": "def init(project, name=None, group=None, space_id=None, space_storage=None, config=None):\n"
    "    assert (project, config) == ('p', 1)\n"
    "    places = os.environ.keys() & {'TRACKIO_SPACE_ID', 'TRACKIO_SERVER_URL'}\n"
    "    if space_id or places: upload()\n"
    "def sync(**_): upload()\ndef freeze(**_): upload()",
}
SCRIPT = """
import clearml, comet_ml, mlflow, neptune, swanlab, torch, trackio, wandb
wandb.init(project="p")
mlflow.start_run()
comet_ml.start()
comet_ml.start(online=True)
comet_ml.Experiment("key")
comet_ml.ExistingExperiment(api_key="key", disabled=False)
neptune.init_run()
clearml.Task.init()
swanlab.init()
trackio.init("p", None, None, "user/space", config=1)
trackio.init(project="p", config=1)
trackio.sync(project="p")
trackio.freeze(space_id="user/space")
torch.ones(3, device=DEVICE)
"""


@pytest.fixture
def fake_trackers(tmp_path, monkeypatch):
    """Write a package with the name of each tracker beside the script. The user has named a Space, and a server."""
    for name, code in TRACKERS.items():
        (tmp_path / f"{name}.py").write_text(f"{UPLOAD}{code}\n")
    monkeypatch.setenv("TRACKIO_SPACE_ID", "user/space")
    monkeypatch.setenv("TRACKIO_SERVER_URL", "http://lab:7860")
    for name in (*trackers.VARIABLES, "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def test_a_traced_script_uploads_nothing_to_trackers(fake_trackers, trace_in_new_process, tmp_path):
    trace_in_new_process(SCRIPT.replace("DEVICE", "'cuda'"))
    assert not (tmp_path / "uploads").exists()


def test_without_a_trace_the_same_script_uploads_to_each_tracker(fake_trackers, tmp_path):
    command = [sys.executable, "-c", SCRIPT.replace(", torch", "").replace("torch.ones(3, device=DEVICE)", "")]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert {*(tmp_path / "uploads").read_text().split()} == {*TRACKERS}


def test_the_variables_of_transformers_comet_callback_turn_it_off(monkeypatch):
    """Its documentation: `disabled` is a deprecated mode; its code logs nothing for a mode that it does not know."""
    pytest.importorskip("transformers")
    from transformers.integrations import CometCallback

    monkeypatch.setenv("COMET_MODE", trackers.VARIABLES["COMET_MODE"])
    callback = CometCallback.__new__(CometCallback)
    callback._initialized, callback._log_assets, callback._experiment = False, False, None
    state = type("State", (), {"is_world_process_zero": True, "is_hyper_param_search": False})
    callback.setup(None, state, None)
    assert callback._experiment is None


def test_the_real_mlflow_writes_to_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"})
    trackers.turn_off_trackers(tmp_path / "temporary")
    source = "import mlflow\nwith mlflow.start_run():\n    mlflow.log_metric('a', 1)"
    environment = {**os.environ, "PYTHONPATH": str(mlflow_folder())}
    subprocess.run([sys.executable, "-c", source], cwd=tmp_path, check=True, env=environment)
    assert [*(tmp_path / "temporary" / "mlflow").glob("*/*/metrics/a")]
    assert not (tmp_path / "mlruns").exists()
