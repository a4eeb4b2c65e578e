"""Start, address and end of Jupyter. Fakes: docker, which starts the program on this machine, and jupyter."""

import os
import subprocess
import sys
import time
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from experiments.runners.notebook_server import NOTEBOOK_FOLDER, serve_notebooks
from provision.errors import CommandFailed
from provision.ssh.shell import LocalShell

DOCKER = """#!/bin/sh
echo "$@" >> calls
case "$1" in
run)
  while [ "$1" != jupyter ]; do
    case "$1" in --env-file) . "$2"; stat -c %a "$2" >> modes ;; esac
    shift
  done
  export JUPYTER_TOKEN
  "$@" > jupyter.log 2>&1 & echo $! > pid ;;
rm) [ ! -e pid ] || kill $(cat pid); rm -f pid ;;
container) kill -0 $(cat pid) 2> /dev/null && echo true ;;
logs) tail -n 1 jupyter.log ;;
esac
"""
JUPYTER = f"""#!{sys.executable}
import http.server, os, sys
options = dict(word[2:].split("=", 1) for word in sys.argv if "=" in word)
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        known = self.path == "/api" or self.path.endswith("?token=" + os.environ["JUPYTER_TOKEN"])
        self.send_response(200 if known else 403)
        self.end_headers()
http.server.HTTPServer((options["ip"], int(options["port"])), Answer).serve_forever()
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name, text in (("docker", DOCKER), ("jupyter", JUPYTER)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


def test_jupyter_answers_only_on_loopback_with_its_token_and_ends_with_its_command(home):
    with serve_notebooks(LocalShell(), "lab.ipynb") as address:
        assert "/lab/tree/lab.ipynb?token=" in address
        urlopen(address).close()
        with pytest.raises(HTTPError, match="403"):
            urlopen(address.partition("?")[0])
        assert "--ip=127.0.0.1" in (home / "calls").read_text()
    assert (home / NOTEBOOK_FOLDER).is_dir()
    time.sleep(0.2)
    with pytest.raises(OSError, match="refused"):
        urlopen(address)


def test_the_token_is_on_no_command_line_and_in_no_file_that_others_may_read(home):
    with serve_notebooks(LocalShell()) as address:
        token = address.partition("token=")[2]
        listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        assert len(token) == 48
        assert token not in listed + (home / "calls").read_text() + (home / "jupyter.log").read_text()
        assert (home / "modes").read_text() == "600\n"
        secret = (home / "calls").read_text().partition("--env-file ")[2].split()[0]
        assert not os.path.exists(secret)


def test_an_image_without_jupyter_is_an_error_with_the_last_line_of_its_log(home):
    (home / "jupyter").write_text("#!/bin/sh\necho jupyter: not found >&2; exit 127\n")
    with (
        pytest.raises(CommandFailed, match="Jupyter does not start: jupyter: not found"),
        serve_notebooks(LocalShell()),
    ):
        pass
    assert not (home / "pid").exists()
