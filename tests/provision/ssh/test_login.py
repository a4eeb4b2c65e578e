"""Files of SSH keys."""

import pytest

from provision.errors import BadKey
from provision.ssh.login import key_pair


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
