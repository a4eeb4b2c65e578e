"""The host keys that a node gets are those that the user has accepted."""

import pytest

from provision.errors import BadHostKey
from provision.ssh import known_hosts
from tests.support.services.sshd import new_key


def test_only_the_lines_of_the_host_in_known_hosts_are_returned(tmp_path, monkeypatch):
    keys = [new_key(tmp_path / name).with_suffix(".pub").read_text().strip() for name in ("one", "other")]
    file = tmp_path / "known_hosts"
    file.write_text(f"saved.edu {keys[0]}\nother.edu {keys[1]}\n")
    monkeypatch.setattr(known_hosts, "FILES", (str(file), str(tmp_path / "missing")))
    (line,) = known_hosts.known_hosts_lines("saved.edu").splitlines()
    assert line.split()[:3] == ["saved.edu", *keys[0].split()[:2]]
    with pytest.raises(BadHostKey, match=r"unknown\.edu: its host key is not in"):
        known_hosts.known_hosts_lines("unknown.edu")
