"""SSH to a real sshd on a floating IP."""

import pytest

from provision.errors import BadHostKey, NotReached
from provision.ssh.login import Login, forget_host_key, try_login


@pytest.fixture
def login(key, tmp_path):
    return lambda ip, alias: Login(ip, alias, key.file, tmp_path / "known_hosts")


def test_the_host_key_of_a_server_is_recorded_at_the_first_login_and_required_later(local_openstack, sshd, login):
    first, second = (login(sshd.addresses[0], alias) for alias in ("server-1", "server-2"))
    try_login(first)
    sshd.new_host_key()
    with pytest.raises(BadHostKey, match=f"ssh-keygen -R {first.alias} -f {first.known_hosts}"):
        try_login(first)
    try_login(second)
    forget_host_key(first.alias, first.known_hosts)
    try_login(first)


def test_a_login_at_an_unused_address_is_reported_as_not_reached(local_openstack, login):
    with pytest.raises(NotReached):
        try_login(login(f"{local_openstack.place.floating}.250", "server-1"))
