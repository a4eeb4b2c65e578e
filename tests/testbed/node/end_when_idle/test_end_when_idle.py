"""The program that ends the lease of an idle node, on a real node: its setup, its secrets, and the end of the lease.

Fakes: keystone and Blazar, by one HTTP server of this machine; tests/testbed/chameleon has the real ones.
"""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from provision.configure.playbook import configure_end_when_idle
from provision.errors import ConfigureFailed
from provision.leasing.journal import Machine
from provision.ssh.login import USER
from tests.support.processes.waiting import wait_for
from tests.support.services.sshd import new_key
from tests.testbed.node import network
from tests.testbed.node.node import Node
from tests.testbed.node.test_playbook import LoginTo

SECRET = "not-to-be-seen"
SERVICE = "llm-testbed-end-when-idle.service"


class FakeCloud(ThreadingHTTPServer):
    """Fake keystone and Blazar with one lease. deleted: how many times the lease was deleted."""

    deleted = 0
    secrets: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        return f"http://{network.GATEWAY}:{self.server_port}"


class CloudHandler(BaseHTTPRequestHandler):
    server: FakeCloud

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.secrets = (*self.server.secrets, body["auth"]["identity"]["application_credential"]["secret"])
        self._answer(201, {}, ("X-Subject-Token", "token"))

    def do_GET(self) -> None:
        exists = self.path == "/v1/leases/1" and not self.server.deleted
        self._answer(200 if exists else 404, {"lease": {"status": "ACTIVE"}})

    def do_DELETE(self) -> None:
        self.server.deleted += self.path == "/v1/leases/1" and self.headers["X-Auth-Token"] == "token"
        self._answer(200, {})

    def _answer(self, code: int, body: object, *headers: tuple[str, str]) -> None:
        self.send_response(code)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def cloud(node: Node) -> Iterator[FakeCloud]:
    server = FakeCloud((network.GATEWAY, 0), CloudHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def set_up(node: Node, login: LoginTo, cloud: FakeCloud, tmp_path):
    """Set up the node's check; variables without the role's prefix."""

    def operation(**variables: Any) -> tuple[str, ...]:
        given = {
            "auth_url": f"{cloud.url}/v3",
            "lease_url": f"{cloud.url}/v1/leases/1",
            "credential_id": "id",
            "secret": SECRET,
            **variables,
        }
        prefixed = {f"end_when_idle_{name}": value for name, value in given.items()} | {"download_pause_s": 0.1}
        return configure_end_when_idle(Machine(node.name, login(node)), prefixed, print, tmp_path / "logs")

    yield operation
    node.run("systemctl", "stop", "llm-testbed-end-when-idle.timer", SERVICE)


def test_the_secret_is_only_in_a_file_of_root_and_a_second_setup_changes_nothing(node, set_up, cloud, tmp_path, capfd):
    assert set_up()
    assert set_up() == ()
    assert cloud.secrets[0] == SECRET
    assert node.run("stat", "--format=%U %a", "/etc/llm-testbed/end-when-idle.json") == "root 600\n"
    assert node.run("systemctl", "is-active", "llm-testbed-end-when-idle.timer") == "active\n"
    node.run("systemctl", "start", SERVICE)
    shown = [path.read_text(errors="replace") for path in tmp_path.rglob("*.log")]
    shown += [node.run("journalctl", "--no-pager"), node.run("ps", "axww"), *capfd.readouterr()]
    assert SECRET not in "".join(shown)


def test_a_setup_with_an_unusable_credential_fails(set_up, cloud):
    with pytest.raises(ConfigureFailed, match="blazar does not have this lease"):
        set_up(lease_url=f"{cloud.url}/v1/leases/2")
    with pytest.raises(ConfigureFailed, match="keystone"):
        set_up(auth_url=f"http://{network.GATEWAY}:9/v3")
    assert cloud.deleted == 0


def test_an_idle_node_ends_its_lease_once_nobody_is_logged_in(node, set_up, cloud):
    set_up(after_s=2)
    node.run("systemctl", "start", SERVICE)
    assert "busy: logged in: cc@notty" in node.run("journalctl", "--no-pager", "--unit", SERVICE)

    said = []

    def ended() -> bool:
        said.append(node.run("/usr/local/lib/llm-testbed/end_when_idle.py"))
        return cloud.deleted > 0

    wait_for(ended)
    assert said[-1] == "the results are saved and the lease is ended\n"
    assert cloud.deleted == 1


def test_results_are_copied_by_ssh_to_a_target_only_if_it_has_the_known_host_key(node, set_up, login, tmp_path):
    key = new_key(tmp_path / "results")
    authorized = node.root / f"home/{USER}/.ssh/authorized_keys"
    before = authorized.read_text()
    only_rsync = f'restrict,command="rrsync /home/{USER}/saved" '
    authorized.write_text(before + only_rsync + key.with_name(f"{key.name}.pub").read_text())
    node.run("install", "--directory", "--owner", USER, f"/home/{USER}/saved")
    host_key = (node.root / "etc/ssh/ssh_host_ed25519_key.pub").read_text()
    target = {"results_to": f"{USER}@{node.address}:.", "results_key": key.read_text()}
    with pytest.raises(ConfigureFailed, match="rsync ended with"):
        set_up(
            **target,
            results_known_hosts=f"{node.address} {new_key(tmp_path / 'other').with_suffix('.pub').read_text()}",
        )
    set_up(**target, results_known_hosts=f"{node.address} {host_key}")
    result = node.root / f"home/{USER}/llm-testbed/run-1/lab/row/result.json"
    result.parent.mkdir(parents=True)
    result.write_text("{}")
    program = "import json, end_when_idle as c; c.Node(c.Settings(**json.loads(c.SETTINGS.read_text()))).save_results()"
    node.run("sh", "-c", f"cd /usr/local/lib/llm-testbed && python3 -c '{program}'")
    assert (node.root / f"home/{USER}/saved/run-1/lab/row/result.json").read_text() == "{}"
    authorized.write_text(before)
