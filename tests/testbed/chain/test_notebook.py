"""`testbed notebook` with the image on the leased node: access, user and downloaded files."""

import json
import socket
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import parse_qs, urlsplit
from urllib.request import Request, urlopen

import pytest

from provision.ssh.login import USER
from tests.support.processes.waiting import wait_for
from tests.testbed.chain.cli_user import CliUser, Command

pytestmark = pytest.mark.timeout(3600)


class Jupyter:
    """The server at the address that the command printed."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self.base, self.path = f"{parts.scheme}://{parts.netloc}", parts.path
        (self.token,) = parse_qs(parts.query)["token"]

    def query(self, path: str, token: str | None = None, body: object = None) -> bytes:
        headers = {"Authorization": f"token {token}"} if token else {}
        data = json.dumps(body).encode() if body else None
        with urlopen(Request(self.base + path, data, headers, method="PUT" if body else "GET"), timeout=10) as response:
            return response.read()


def test_a_notebook_on_a_node_is_served_only_to_its_owner_and_the_edited_copy_is_downloaded(
    cli_user: CliUser, last_client: Command, tmp_path: Path
) -> None:
    command = cli_user.start_command("notebook", "single_gpu_blip2", "--into", str(tmp_path / "home"))
    jupyter = Jupyter(command.until(r"http://localhost:\d+/\S+"))
    assert jupyter.path == "/lab/tree/single_gpu_blip2.ipynb"
    with pytest.raises(HTTPError, match="403"):
        jupyter.query("/api/contents")
    found = json.loads(jupyter.query("/api/contents", jupyter.token))
    assert [one["name"] for one in found["content"]] == ["single_gpu_blip2.ipynb"]
    work = {"type": "file", "format": "text", "content": "done there\n"}
    jupyter.query("/api/contents/work.txt", jupyter.token, work)

    listening = cli_user.node.run("ss", "--listening", "--tcp", "--numeric", "--no-header", "--processes").splitlines()
    (address,) = {line.split()[3] for line in listening if "jupyter" in line}
    host, _, port = address.rpartition(":")
    assert host == "127.0.0.1"
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((cli_user.node.address, int(port)), timeout=5).close()
    container = json.loads(cli_user.node.run("docker", "inspect", "testbed-notebook"))[0]
    assert container["HostConfig"]["Privileged"] is False
    assert container["Config"]["User"] == cli_user.node.run("id", "--user", USER).strip() + ":" + _group(cli_user)
    assert jupyter.token not in cli_user.node.run("ps", "-eo", "args")

    command.interrupt()
    assert command.end() == 0, command.output
    assert (tmp_path / "home" / "work.txt").read_text() == "done there\n"
    wait_for(lambda: not cli_user.containers())


def _group(cli_user: CliUser) -> str:
    return cli_user.node.run("id", "--group", USER).strip()
