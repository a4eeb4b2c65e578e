"""SSH to a real sshd on a floating IP."""

import pytest

from provision.errors import BadHostKey, NotReached
from provision.ssh.login import Login, forget_host_key, try_login


@pytest.fixture
def login(key, tmp_path):
    return lambda ip, alias: Login(ip, alias, key.file, tmp_path / "known_hosts")


def test_a_servers_host_key_is_recorded_at_first_contact_and_pinned(local_openstack, sshd, login):
    first, second = (login(sshd.addresses[0], alias) for alias in ("server-1", "server-2"))
    try_login(first)
    sshd.new_host_key()
    with pytest.raises(BadHostKey, match=f"ssh-keygen -R {first.alias} -f {first.known_hosts}"):
        try_login(first)
    try_login(second)
    forget_host_key(first.alias, first.known_hosts)
    try_login(first)


def test_an_unused_address_does_not_answer(local_openstack, login):
    with pytest.raises(NotReached):
        try_login(login(f"{local_openstack.place.floating}.250", "server-1"))
