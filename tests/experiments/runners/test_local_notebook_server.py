"""Jupyter on this machine, with a fake JupyterLab that answers and records how it was started."""

import json
import re
import sys
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from experiments.cli.app import main
from experiments.errors import InputError
from experiments.runners import local_notebook_server, notebook_server
from experiments.runners.local_notebook_server import serve_local_notebooks
from experiments.system.files import CODE_FOLDER

FAKE_JUPYTERLAB = """
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

options = dict(one[2:].partition("=")[::2] for one in sys.argv[1:])
started = {"options": options, "token": os.environ["JUPYTER_TOKEN"], "paths": os.environ["PYTHONPATH"]}
open("started.json", "w").write(json.dumps(started))

class Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *given):
        pass

server = HTTPServer((options["ip"], int(options["port"])), Answers)
if os.path.exists("answer-once"):
    server.handle_request()
else:
    server.serve_forever()
"""


@pytest.fixture
def jupyterlab(tmp_path, monkeypatch):
    package = tmp_path / "packages" / "jupyterlab"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(FAKE_JUPYTERLAB)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setattr(notebook_server, "POLL_S", 0.05)
    return package


def recorded_start(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "started.json").read_text())


def test_jupyter_listens_on_the_loopback_interface_and_the_printed_address_has_its_token(jupyterlab, tmp_path):
    with serve_local_notebooks(tmp_path, "lab.ipynb") as (address, jupyter):
        made = recorded_start(tmp_path)
        assert made["options"]["ip"] == "127.0.0.1"
        assert address == f"http://localhost:{made['options']['port']}/lab/tree/lab.ipynb?token={made['token']}"
        assert len(made["token"]) == 48
        assert made["token"] not in str(made["options"])
        assert made["paths"].startswith(str(CODE_FOLDER))
        assert urlopen(address).status == 200
    assert jupyter.returncode is not None


def test_the_command_notebook_opens_a_copy_and_does_not_overwrite_an_edited_copy(
    jupyterlab, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("notebooks").mkdir()
    Path("notebooks/answer-once").touch()
    command = ["notebook", "sizing", "--site", "local"]
    assert main(command) == 0
    assert re.search(r"http://localhost:\d+/lab/tree/sizing\.ipynb\?token=[0-9a-f]{48}\n", capsys.readouterr().out)
    copy = Path("notebooks/sizing.ipynb")
    assert copy.read_bytes() == (CODE_FOLDER / "experiments/notebooks/sizing.ipynb").read_bytes()
    copy.write_text("edited")
    assert main(command) == 0
    assert copy.read_text() == "edited"


def test_an_unknown_notebook_and_a_missing_jupyterlab_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local_notebook_server, "find_spec", lambda name: None)
    assert main(["notebook", "nope", "--site", "local"]) == 2
    assert "nope" in capsys.readouterr().err
    assert main(["notebook", "--site", "local"]) == 2
    error = capsys.readouterr().err
    assert f"{sys.executable} -m pip install jupyterlab" in error.replace("\n", " ")


def test_a_jupyter_that_does_not_start_is_an_error(jupyterlab, tmp_path):
    (jupyterlab / "__main__.py").write_text("raise SystemExit(1)")
    with pytest.raises(InputError, match="does not start"), serve_local_notebooks(tmp_path):
        pass
