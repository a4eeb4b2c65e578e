"""Files of SSH keys, and attempts to log in at a real sshd."""

import subprocess
import time
from dataclasses import replace

import pytest

from provision.errors import BadHostKey, BadKey, LoginRejected, NotReached
from provision.ssh.login import check_key, forget_host_key, key_pair, try_login
from tests.support.services.sshd import PROGRAM, Sshd, new_key


@pytest.mark.parametrize("missing", ["id", "id.pub"])
def test_a_missing_file_is_named_with_the_command_that_creates_it(tmp_path, missing):
    for name in {"id", "id.pub"} - {missing}:
        (tmp_path / name).write_text("ssh-ed25519 AAAA me")
    with pytest.raises(BadKey, match=f"SSH key {tmp_path}/{missing} does not exist; create one: ssh-keygen"):
        key_pair(tmp_path / "id")


def test_an_invalid_public_key_is_rejected_without_its_text(tmp_path):
    for name in ("id", "id.pub"):
        (tmp_path / name).write_text("-----BEGIN OPENSSH PRIVATE KEY-----")
    with pytest.raises(BadKey, match="is not a public key") as rejected:
        key_pair(tmp_path / "id")
    assert "BEGIN" not in str(rejected.value)


@pytest.fixture
def new_key_pair(tmp_path):
    return key_pair(new_key(tmp_path / "id"))


def keygen(*arguments):
    return subprocess.run(["ssh-keygen", "-q", *arguments], check=True, capture_output=True, text=True).stdout


def test_a_key_pair_that_needs_no_prompt_is_accepted(new_key_pair):
    check_key(new_key_pair)


def test_a_key_with_a_passphrase_needs_the_agent(new_key_pair, tmp_path, monkeypatch):
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    keygen("-p", "-P", "", "-N", "secret", "-f", str(new_key_pair.file))
    with pytest.raises(BadKey, match=rf"cannot be used without a prompt .*ssh-add {new_key_pair.file}"):
        check_key(new_key_pair)
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(tmp_path / "agent")], stdout=subprocess.DEVNULL)
    try:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
        while not (tmp_path / "agent").exists():
            time.sleep(0.02)
        keygen("-p", "-P", "secret", "-N", "", "-f", str(new_key_pair.file))
        subprocess.run(["ssh-add", "-q", new_key_pair.file], check=True)
        keygen("-p", "-P", "", "-N", "secret", "-f", str(new_key_pair.file))
        check_key(new_key_pair)
    finally:
        agent.kill()
        agent.wait()


def test_keys_that_do_not_belong_together_are_rejected(new_key_pair, tmp_path):
    other = new_key(tmp_path / "other")
    with pytest.raises(BadKey, match=r"do not belong together; run: ssh-keygen -y"):
        check_key(replace(new_key_pair, public=other.with_name("other.pub").read_text()))


def test_a_truncated_public_key_is_rejected(new_key_pair):
    kind, blob, _ = new_key_pair.public.split()
    with pytest.raises(BadKey, match="do not belong together"):
        check_key(replace(new_key_pair, public=f"{kind} {blob[:-12]}"))


def test_a_public_key_of_two_lines_is_rejected(new_key_pair):
    public = new_key_pair.file.with_name("id.pub")
    public.write_text(f"{new_key_pair.public}\n{new_key_pair.public}\n")
    with pytest.raises(BadKey, match="is not a public key"):
        key_pair(new_key_pair.file)


def test_a_private_key_that_is_damaged_or_open_to_others_is_rejected(new_key_pair):
    new_key_pair.file.write_text(new_key_pair.file.read_text().replace("KEY", "KEI"))
    with pytest.raises(BadKey, match="cannot be used without a prompt"):
        check_key(new_key_pair)
    for mode in (0o644, 0o640, 0o604):
        new_key_pair.file.chmod(mode)
        with pytest.raises(BadKey, match=f"readable by other users; run: chmod 600 {new_key_pair.file}"):
            check_key(new_key_pair)


@pytest.mark.skipif(PROGRAM is None, reason="needs OpenSSH's sshd (package openssh-server)")
def test_a_failed_login_is_reported_with_the_message_of_ssh(tmp_path):
    sshd = Sshd(tmp_path / "sshd").start()
    try:
        login = sshd.login()
        try_login(login)
        with pytest.raises(LoginRejected, match=r"Permission denied \(publickey"):
            try_login(replace(login, key=new_key(tmp_path / "other")))
        sshd.new_host_key()
        with pytest.raises(BadHostKey, match=rf"was rebuilt, .* ssh-keygen -R {login.alias} -f {login.known_hosts}"):
            try_login(login)
        forget_host_key(login.alias, login.known_hosts)
        try_login(login)
    finally:
        sshd.stop()
    with pytest.raises(NotReached, match="Connection refused"):
        try_login(login)
