"""The real Ansible runs with any locale and TMPDIR of this computer. The machine to configure does not answer."""

from pathlib import Path

import pytest

from provision.configure import playbook
from provision.configure.playbook import Setup, configure
from provision.errors import NotReached
from provision.leasing.journal import Machine
from provision.ssh.login import Login
from tests.support.services.sshd import free_port, new_key


@pytest.mark.parametrize("locale", ["C", "de_DE.UTF-8"])
def test_ansible_runs_with_any_locale_and_temporary_folder(tmp_path, monkeypatch, locale):
    pytest.importorskip("ansible_runner")
    long = tmp_path / ("a" * 60) / ("b" * 60)
    long.mkdir(parents=True)
    monkeypatch.setenv("LC_ALL", locale)
    monkeypatch.setattr("tempfile.tempdir", str(long))
    key = new_key(tmp_path / "key")
    machine = Machine("node", Login("127.0.0.1", "node", key, tmp_path / "known_hosts", port=free_port()))
    with pytest.raises(NotReached, match="refused"):
        configure([machine], Setup(), lambda line: None, logs=tmp_path / "logs")


def test_relative_paths_and_paths_in_the_home_folder_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    login = Path("~/.docker/config.json")
    setup = Setup(source="load", image_archive=Path("image.tar"), registry_login=login)
    variables = playbook._role_variables(setup, tmp_path)
    assert variables["images_archive"] == str(tmp_path / "image.tar")
    assert variables["images_registry_login"] == "/home/somebody/.docker/config.json"


def test_a_warning_of_an_ansible_role_is_reported():
    reported: list[str] = []
    events = playbook._Events(reported.append, lambda text: None, playbook.PLAYBOOK)
    data = {"host": "node", "role": "precheck", "task_action": "ansible.builtin.debug", "res": {"msg": "slow mirror"}}
    events.handle({"event": "runner_on_ok", "event_data": data})
    assert reported == ["warning: node: slow mirror"]
