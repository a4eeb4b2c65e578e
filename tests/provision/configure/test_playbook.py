"""Ansible runs whatever this computer's locale and TMPDIR are. Real Ansible, at a machine that does not answer."""

import pytest

from provision.configure.playbook import Setup, configure
from provision.errors import NotReached
from provision.leasing.journal import Machine
from provision.ssh.login import Login
from tests.support.sshd import free_port, new_key


@pytest.mark.parametrize("locale", ["C", "de_DE.UTF-8"])
def test_a_locale_and_a_temporary_folder_of_any_kind_are_fine(tmp_path, monkeypatch, locale):
    pytest.importorskip("ansible_runner")
    long = tmp_path / ("a" * 60) / ("b" * 60)
    long.mkdir(parents=True)
    monkeypatch.setenv("LC_ALL", locale)
    monkeypatch.setattr("tempfile.tempdir", str(long))
    key = new_key(tmp_path / "key")
    machine = Machine("node", Login("127.0.0.1", "node", key, tmp_path / "known_hosts", port=free_port()))
    with pytest.raises(NotReached, match="refused"):
        configure([machine], Setup(), lambda line: None, logs=tmp_path / "logs")
