"""The key of a package repository is accepted only with the right fingerprint. Ansible runs the role here."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from provision.configure.playbook import ANSIBLE
from tests.support.needs import need

TASKS = ANSIBLE / "roles" / "container_toolkit" / "tasks" / "key.yml"


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> dict[str, Path]:
    """Two new keys, and both in one file."""
    need(("gpg",), "gpg")
    folder = tmp_path_factory.mktemp("gpg")
    folder.chmod(0o700)
    gpg = ["gpg", "--homedir", str(folder), "--batch", "--passphrase", "", "--pinentry-mode", "loopback"]
    for name in ("vendor", "stranger"):
        subprocess.run([*gpg, "--quick-generate-key", name, "ed25519", "sign"], check=True, capture_output=True)
        subprocess.run([*gpg, "--armor", "--output", str(folder / name), "--export", name], check=True)
    (folder / "both").write_text((folder / "vendor").read_text() + (folder / "stranger").read_text())
    return {name: folder / name for name in ("vendor", "stranger", "both")}


def _fingerprint(key: Path) -> str:
    shown = subprocess.run(["gpg", "--show-keys", "--with-colons", str(key)], capture_output=True, text=True).stdout
    return next(line.split(":")[9] for line in shown.splitlines() if line.startswith("fpr:"))


@pytest.mark.parametrize(("offered", "accepted"), [("vendor", True), ("stranger", False), ("both", False)])
def test_only_a_repository_key_with_the_expected_fingerprint_is_accepted(keys, tmp_path, offered, accepted):
    variables = {
        "container_toolkit_key": keys[offered].as_uri(),
        "container_toolkit_keyring": str(tmp_path / "key.asc"),
        "container_toolkit_key_fingerprint": _fingerprint(keys["vendor"]),
        "download_pause_s": 0,
        "ansible_python_interpreter": sys.executable,
    }
    tasks = [{"ansible.builtin.include_tasks": str(TASKS)}]
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "vars": variables, "tasks": tasks}
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    ansible = Path(sys.executable).with_name("ansible-playbook")
    done = subprocess.run([ansible, tmp_path / "play.yml"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode == 0) == accepted, done.stdout + done.stderr
    if not accepted:
        assert _fingerprint(keys["stranger"]) in done.stdout
