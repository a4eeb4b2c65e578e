"""The screens of commands that need a node, a GPU, Jupyter or a package index. All four are fakes."""

import json
import re
import signal
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.blame import observe
from experiments.cli import configure
from experiments.cli.app import main
from experiments.prediction import predict
from experiments.prediction.times import calibrate
from experiments.prediction.times.table import Machine as CalibratedMachine
from experiments.prediction.times.table import OperationTime
from experiments.runners import local_notebook_server, notebook_server, targets
from experiments.runners.slurm import download
from experiments.runners.targets import MonitorTarget
from provision.configure import playbook
from provision.leasing.journal import Machine
from provision.ssh.login import Login
from provision.ssh.shell import LocalShell
from tests.support.results.fake_index import fake_observation, values, wheel
from tests.support.results.handwritten import h200_run, with_predictions
from tests.support.services.screens import WIDTHS, check_screen, session
from tests.support.services.terminal import full_screen, terminal_output

CONFIGURE = ("configure", "configure --check")
NOTEBOOK = (
    "notebook single_gpu_blip2",
    "notebook --site local",
    "notebook nosuch --site local",
)
CALIBRATE = ("calibrate single_gpu_blip2/xxl-sgd --out my_gpu.jsonl",)
BLAME = ("blame single_gpu_blip2/xxl-sgd --good old.txt --bad new.txt",)
WATCH = ("watch RUN",)
MACHINE_LINES = (*CONFIGURE, *NOTEBOOK, *CALIBRATE, *BLAME, *WATCH)
NODE = Machine("node-llm-you", Login("192.0.2.1", "node", Path("key"), Path("known_hosts")))
FACTS = {"gpus": [{"name": "NVIDIA A100 80GB PCIe"}] * 4, "images": {"llm-testbed:current": f"sha256:{'0123' * 16}"}}
WARNING = {
    "event": "runner_on_ok",
    "event_data": {
        "host": NODE.server,
        "task_action": "ansible.builtin.debug",
        "res": {"msg": "dcgm is not installed: no package repository of the machine offers it"},
    },
}
GPU = CalibratedMachine(
    card="a100_80gb", gpu="NVIDIA A100 80GB PCIe", host="node", torch="2.11", command="calibrate", date="2026-11-28"
)
OPERATIONS = [json.dumps(["aten::relu.out", *2 * [{"type": "Float", "sizes": [size]}]]) for size in (8, 16, 32)]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def play_of_fake_node(_scratch, _sockets, _machines, _variables, events, _check):
    """Send the events of a node on which each role has one task, and only the role docker changes something."""
    for role in playbook._role_names(events.playbook):
        task = {"role": role, "task": "First task", "host": NODE.server}
        events.handle({"event": "runner_on_start", "event_data": task})
        events.handle({"event": "runner_on_ok", "event_data": {**task, "res": {"changed": role == "docker"}}})
    events.handle(WARNING)
    return "successful"


@pytest.mark.parametrize("width", WIDTHS)
def test_the_configuration_of_a_fake_node_shows_the_stored_screen(width, monkeypatch):
    journal = SimpleNamespace(folder=Path("journal"))
    monkeypatch.setattr(configure, "new_reconciler", lambda: SimpleNamespace(journal=journal))
    monkeypatch.setattr(configure, "active_lease_named", lambda *_: SimpleNamespace(name="llm_you", machines=(NODE,)))
    monkeypatch.setattr(playbook, "_call_ansible", play_of_fake_node)
    monkeypatch.setattr(playbook, "_read_facts", lambda _: FACTS)
    text = session(CONFIGURE, width, {})
    check_screen("configure", width, re.sub(r"\d{8}T\d{6}", "20261128T120000", text))


@contextmanager
def fake_jupyter(*_):
    yield "http://127.0.0.1:8888/lab/tree/single_gpu_blip2.ipynb?token=0123456789abcdef"


@contextmanager
def fake_local_jupyter(*_):
    yield "http://127.0.0.1:8888/lab?token=0123456789abcdef", SimpleNamespace(wait=raise_interrupt)


def raise_interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize("width", WIDTHS)
def test_notebooks_on_fake_servers_show_the_stored_screen(width, monkeypatch):
    monkeypatch.setattr(targets, "monitor_target", lambda *_: MonitorTarget(LocalShell(), "."))
    monkeypatch.setattr(notebook_server, "serve_notebooks", fake_jupyter)
    monkeypatch.setattr(local_notebook_server, "serve_local_notebooks", fake_local_jupyter)
    monkeypatch.setattr(download, "download_folder", lambda *_: 3)
    monkeypatch.setattr(signal, "pause", raise_interrupt)
    (folder := Path(notebook_server.NOTEBOOK_FOLDER)).mkdir(parents=True)
    (folder / "single_gpu_blip2.ipynb").touch()
    check_screen("notebook", width, session(NOTEBOOK, width, {}))


@pytest.mark.parametrize("width", WIDTHS)
def test_the_calibration_of_a_fake_gpu_shows_the_stored_screen(width, monkeypatch):
    monkeypatch.setattr(calibrate, "this_machine", lambda _: GPU)
    monkeypatch.setattr(calibrate, "measure", lambda _: OperationTime(1e-3, 1e-5))
    monkeypatch.setattr(calibrate, "PROGRESS_INTERVAL_S", 0.0)
    monkeypatch.setattr(predict, "trace_operations", lambda *_: OPERATIONS)
    check_screen("calibrate", width, session(CALIBRATE, width, {}))


@pytest.mark.parametrize("width", WIDTHS)
def test_a_search_for_a_package_in_a_fake_index_shows_the_stored_screen(width, tmp_path, monkeypatch):
    for version, file in (("1.0", "old.txt"), ("2.0", "new.txt")):
        for name in (names := ("pack1", "pack2", "pack3")):
            wheel(tmp_path, name, version, "2" if (name, version) == ("pack2", "2.0") else "0")
        Path(file).write_text("".join(f"{name}=={version}\n" for name in names))
    variables = {"UV_FIND_LINKS": "", "UV_OFFLINE": "1", "UV_CACHE_DIR": "uv", "TESTBED_CACHE": "cache"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value if name == "UV_OFFLINE" else str(tmp_path / value))
    monkeypatch.setattr(
        observe, "_predict", lambda _, environment: fake_observation(10 + sum(values(environment).values()))
    )
    check_screen("blame", width, session(BLAME, width, {}))


@pytest.mark.parametrize("width", WIDTHS)
def test_the_live_view_of_a_finished_run_shows_the_stored_screen(width, tmp_path):
    run = with_predictions(h200_run(tmp_path / "run"))
    written = terminal_output(lambda: main(["watch", str(run.path)]), width, keys="q", after="CPU utilization")
    check_screen("watch", width, full_screen(written, width))
