"""Hosts of the user's SSH configuration, with a jump host, on a real sshd."""

import subprocess
from dataclasses import replace

import pytest

from provision.errors import BadHostKey, BadSshConfig
from provision.ssh import ssh_config
from provision.ssh.login import SshConfigHost, try_login
from provision.ssh.ssh_shell import SshShell
from tests.support.services.sshd import PROGRAM

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs OpenSSH's sshd (package openssh-server)")


@pytest.mark.parametrize("name", ["super", "behind"])
def test_a_host_of_the_users_ssh_config_is_reached_by_its_name(home, name):
    shell = SshShell(SshConfigHost(name))
    assert shell.run("echo in").out == "in\n"
    assert shell.where == name
    with shell.open_output("echo in") as stream:
        assert stream.read() == b"in\n"
    shell.close()


@pytest.mark.parametrize(("name", "unknown"), [("super", "[127"), ("behind", "[127"), ("behind", "inner")])
def test_the_host_key_of_every_hop_has_to_be_known(home, name, unknown):
    known_hosts = home / ".ssh" / "known_hosts"
    known_hosts.write_text("\n".join(line for line in known_hosts.read_text().split("\n") if unknown not in line))
    with pytest.raises(BadHostKey, match="is unknown; log in once with ssh"):
        SshShell(SshConfigHost(name)).run("true")


@pytest.mark.parametrize(
    "config",
    [
        "Include {home}/.ssh/more",
        "Include {home}/.ssh/more\nMatch originalhost super\n  HostName 127.0.0.1",
    ],
)
def test_the_ssh_configuration_is_read_as_openssh_reads_it(home, config):
    file = home / ".ssh" / "config"
    (home / ".ssh" / "more").write_text(file.read_text())
    file.write_text(config.format(home=home))
    shell = SshShell(SshConfigHost("behind"))
    assert shell.run("echo in").out == "in\n"
    with shell.open_output("echo in") as stream:
        assert stream.read() == b"in\n"
    shell.close()


def test_a_host_whose_name_is_hashed_in_known_hosts_is_accepted(home):
    known_hosts = home / ".ssh" / "known_hosts"
    subprocess.run(["ssh-keygen", "-H", "-f", known_hosts], check=True, capture_output=True)
    assert "127.0.0.1" not in known_hosts.read_text()
    assert SshShell(SshConfigHost("behind")).run("echo in").out == "in\n"


def test_an_ssh_configuration_that_openssh_rejects_is_reported_in_one_line(home):
    (home / ".ssh" / "config").write_text("Host super\n  Port abc\n")
    with pytest.raises(BadSshConfig, match=r"ssh configuration: .*; correct ~/\.ssh/config") as rejected:
        SshShell(SshConfigHost("super")).run("true")
    assert "\n" not in str(rejected.value)


def test_a_leased_node_behind_a_jump_host_is_reached_by_commands_and_streams(home, sshd):
    """The machine's address is reachable only through the jump host."""
    login = replace(sshd.login(alias="leased"), host="node.invalid")
    config = home / ".ssh" / "config"
    config.write_text(f"Host node.invalid\n  ProxyCommand ssh -W 127.0.0.1:{sshd.port} super\n{config.read_text()}")
    try_login(login)
    shell = SshShell(login)
    assert shell.run("echo in").out == "in\n"
    with shell.open_output("echo in") as stream:
        assert stream.read() == b"in\n"
    shell.close()


@pytest.mark.timeout(60)
def test_an_ssh_configuration_whose_match_command_does_not_end_is_rejected(home, monkeypatch):
    monkeypatch.setattr(ssh_config, "RESPONSE_TIMEOUT_S", 1)
    (home / ".ssh" / "config").write_text('Match exec "sleep 100"\n  Port 1\n')
    with pytest.raises(BadSshConfig, match="`ssh -G` does not end within 1 s"):
        SshShell(SshConfigHost("super")).run("true")
