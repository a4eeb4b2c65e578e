"""A real SSH server, and a home folder whose SSH configuration names it."""

import os

import pytest

from tests.support.services.sshd import Sshd, write_ssh_client


@pytest.fixture(scope="module")
def sshd(tmp_path_factory):
    server = Sshd(tmp_path_factory.mktemp("sshd")).start()
    yield server
    server.stop()


@pytest.fixture
def home(sshd, tmp_path, monkeypatch):
    """A home folder whose SSH configuration has the server as 'super', and behind a jump host as 'behind'."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    login = sshd.login(alias=f"[127.0.0.1]:{sshd.port}")
    monkeypatch.setenv("PATH", f"{write_ssh_client(tmp_path)}:{os.environ['PATH']}")
    known = login.known_hosts.read_text()
    (tmp_path / ".ssh" / "known_hosts").write_text(known + known.replace(login.alias, "inner"))
    host = f"  HostName 127.0.0.1\n  Port {sshd.port}\n  User {login.user}\n  IdentityFile {sshd.key}\n"
    (tmp_path / ".ssh" / "config").write_text(
        f"Host super\n{host}Host behind\n{host}  ProxyJump super\n  HostKeyAlias inner\n"
        f"Host *\n  UserKnownHostsFile {tmp_path}/.ssh/known_hosts\n"
    )
    return tmp_path
