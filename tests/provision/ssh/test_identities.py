"""Which keys are offered: IdentityFile, IdentityAgent and IdentitiesOnly apply to commands and to streams."""

import os
import socket
import subprocess
from dataclasses import replace

import pytest

from provision.errors import LoginRejected
from provision.ssh.login import SshConfigHost, check_key, key_pair
from provision.ssh.ssh_shell import SshShell
from tests.support.processes.waiting import wait_for
from tests.support.services.sshd import PROGRAM, new_key

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs OpenSSH's sshd (package openssh-server)")


@pytest.fixture
def agent(sshd, tmp_path):
    """Return the socket of an agent that has the server's key; no file has it unlocked."""
    path = tmp_path / "agent"
    running = subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
    with socket.socket(socket.AF_UNIX) as connection:
        wait_for(lambda: connection.connect_ex(str(path)) == 0)
    subprocess.run(["ssh-add", "-q", sshd.key], check=True, env={**os.environ, "SSH_AUTH_SOCK": str(path)})
    yield path
    running.kill()
    running.wait()


@pytest.fixture
def key_with_passphrase(sshd, tmp_path):
    """Return the file of the server's key, with a passphrase."""
    file = tmp_path / "key"
    for suffix in ("", ".pub"):
        (tmp_path / f"key{suffix}").write_bytes(sshd.key.with_name(f"key{suffix}").read_bytes())
    file.chmod(0o600)
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "locked", "-P", "", "-f", file], check=True)
    return file


def test_a_key_with_a_passphrase_is_used_through_the_ssh_agent(sshd, agent, key_with_passphrase, monkeypatch):
    monkeypatch.setenv("SSH_AUTH_SOCK", str(agent))
    assert SshShell(replace(sshd.login(), key=key_with_passphrase)).run("echo in").out == "in\n"


def logs_in(login):
    """Return whether the login works, by commands and by streams alike: the first uses fabric, the second ssh."""
    shell = SshShell(login)
    outcomes = set()
    for way in (lambda: shell.run("true"), lambda: subprocess.run([*login.arguments(), "true"], check=True)):
        try:
            way()
            outcomes.add(True)
        except (LoginRejected, subprocess.CalledProcessError):
            outcomes.add(False)
    shell.close()
    (same,) = outcomes
    return same


def configured(home, settings, key="/nowhere"):
    """Write these settings at the top of the SSH configuration, and configure another key than the server's."""
    config = home / ".ssh" / "config"
    lines = [line for line in config.read_text().split("\n") if "IdentityFile" not in line]
    config.write_text(f"Match all\n  {settings}\n  IdentityFile {key}\n" + "\n".join(lines))


@pytest.mark.parametrize("name", ["super", "behind"])
@pytest.mark.parametrize("agent_setting", ["{agent}", "$AGENT"])
def test_the_ssh_agent_that_the_configuration_names_is_used(home, agent, monkeypatch, name, agent_setting):
    monkeypatch.setenv("AGENT", str(agent))
    configured(home, f"IdentityAgent {agent_setting.format(agent=agent)}")
    assert logs_in(SshConfigHost(name))


def test_the_agent_of_ssh_auth_sock_is_used_unless_the_configuration_disables_agents(home, agent, monkeypatch):
    configured(home, "IdentityAgent none")
    monkeypatch.setenv("SSH_AUTH_SOCK", str(agent))
    assert not logs_in(SshConfigHost("super"))
    configured(home, "IdentityAgent SSH_AUTH_SOCK")
    assert logs_in(SshConfigHost("super"))


@pytest.mark.parametrize("only", ["IdentitiesOnly yes", "IdentitiesOnly no"])
def test_the_setting_identities_only_excludes_keys_of_the_agent_that_are_not_configured(home, agent, only):
    configured(home, f"IdentityAgent {agent}\n  {only}", key=new_key(home / "other"))
    assert logs_in(SshConfigHost("super")) == (only == "IdentitiesOnly no")


def test_a_key_in_the_agent_can_be_configured_by_its_public_key_file(home, agent, sshd):
    configured(home, f"IdentityAgent {agent}\n  IdentitiesOnly yes", key=sshd.key.with_name("key.pub"))
    assert logs_in(SshConfigHost("super"))


def test_a_key_with_a_passphrase_for_a_leased_node_is_used_through_the_configured_agent(
    home, agent, key_with_passphrase, sshd
):
    login = replace(sshd.login(alias="leased"), key=key_with_passphrase)
    assert not logs_in(login)
    configured(home, f"IdentityAgent {agent}")
    assert logs_in(login)
    check_key(key_pair(key_with_passphrase))


def test_an_agent_that_does_not_answer_is_skipped(home, sshd):
    (home / "agent").write_text("no socket")
    configured(home, f"IdentityAgent {home}/agent", key=sshd.key)
    assert logs_in(SshConfigHost("super"))
