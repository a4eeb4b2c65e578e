"""The playbook on a real node: from bare to configured, a second run, and faults."""

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from provision.configure.playbook import ANSIBLE, ConfigurationResult, Setup, configure
from provision.errors import ConfigureFailed, NotReached
from provision.leasing.journal import Machine
from provision.ssh.login import Login
from tests.support.services.sshd import new_key
from tests.testbed.node import network
from tests.testbed.node.conftest import SetUp
from tests.testbed.node.fake_image import fake_image
from tests.testbed.node.fake_registry import serve_image
from tests.testbed.node.image import NodeImage
from tests.testbed.node.node import CA_BUNDLE, Node

LoginTo = Callable[[Node], Login]
PULLING = ["nvidia_driver", "docker", "images"]
BASE = "localhost/small:1"
PASSWORD = "not-to-be-seen"


@pytest.fixture(scope="module")
def configured_node(node: Node, set_up: SetUp) -> ConfigurationResult:
    """Configure the node."""
    return set_up([node])


def test_check_mode_on_a_bare_node_lists_changes_and_makes_none(node: Node, set_up: SetUp) -> None:
    configured = set_up([node], check=True)
    assert any("Install the Docker engine" in one for one in configured.changed)
    assert configured.facts == {node.name: {}}
    assert not (node.root / "usr/bin/docker").exists()


def test_the_configuration_of_a_node_returns_its_images_gpus_driver_and_hardware(
    node: Node, configured_node: ConfigurationResult
) -> None:
    facts = configured_node.facts[node.name]
    assert facts["images"]["llm-testbed:current"].startswith("sha256:")
    assert [gpu["type"] for gpu in facts["gpus"]] == ["a100", "a100"]
    assert facts["driver"]
    assert facts["docker"]
    assert facts["hardware"]["cpus"] == os.cpu_count()


def test_a_second_run_of_the_playbook_changes_nothing(
    node: Node, set_up: SetUp, configured_node: ConfigurationResult
) -> None:
    assert set_up([node]).changed == ()


def test_check_mode_on_a_configured_node_finds_nothing_to_change(
    node: Node, set_up: SetUp, configured_node: ConfigurationResult
) -> None:
    assert set_up([node], check=True).changed == ()


def test_a_stopped_docker_is_started(node: Node, set_up: SetUp, configured_node: ConfigurationResult) -> None:
    node.run("systemctl", "stop", "docker.socket", "docker")
    changed = set_up([node], roles=["docker"]).changed
    assert [one.split(" (")[0] for one in changed] == ["docker: Start and enable Docker"]
    node.run("docker", "version")


def test_slurm_offers_the_gpus_after_a_reboot(node: Node, login: LoginTo, configured_node: ConfigurationResult) -> None:
    node.reboot()
    node.wait(login(node))
    job = [*login(node).arguments(), "srun --immediate=60 --gres=gpu:2 sh -c 'echo $USER $CUDA_VISIBLE_DEVICES'"]
    assert subprocess.run(job, check=True, capture_output=True, text=True).stdout == "cc 0,1\n"


def failure_message(set_up: SetUp, node: Node, **options: Any) -> str:
    with pytest.raises(ConfigureFailed) as caught:
        set_up([node], **options)
    assert str(caught.value).startswith(f"{node.name}: ")
    return str(caught.value)


def test_a_masked_service_is_named_with_a_fix(node: Node, set_up: SetUp, configured_node: ConfigurationResult) -> None:
    node.run("systemctl", "mask", "--now", "docker")
    try:
        said = failure_message(set_up, node, roles=["docker"])
    finally:
        node.run("systemctl", "unmask", "docker")
    assert "docker: Start and enable Docker" in said
    assert "systemctl unmask" in said


SETTINGS = Path("/etc/docker/daemon.json")


@pytest.fixture
def settings(node: Node, configured_node: ConfigurationResult) -> Iterator[Path]:
    """Yield the file of Docker's settings on the node; it is restored at the end."""
    file = node.root / SETTINGS.relative_to("/")
    before = file.read_bytes()
    yield file
    file.write_bytes(before)
    for copy in file.parent.glob(f"{file.name}.*~"):
        copy.unlink()


def test_existing_settings_of_docker_stay_and_the_old_file_is_saved(node: Node, set_up: SetUp, settings: Path) -> None:
    own = {"registry-mirrors": ["https://mirror.invalid"], "features": {"other": True}, "log-driver": "syslog"}
    settings.write_text(json.dumps(own))
    assert "docker: Write the daemon's settings" in " ".join(set_up([node], roles=["docker"]).changed)
    written = json.loads(settings.read_text())
    assert written["registry-mirrors"] == own["registry-mirrors"]
    assert written["features"] == {"other": True, "cdi": True, "containerd-snapshotter": False}
    assert written["log-driver"] == "json-file"
    (kept,) = settings.parent.glob(f"{settings.name}.*~")
    assert json.loads(kept.read_text()) == own
    assert set_up([node], roles=["docker"]).changed == ()


def test_unreadable_settings_of_docker_are_reported_and_not_changed(node: Node, set_up: SetUp, settings: Path) -> None:
    settings.write_text("{")
    assert f"Parse the settings in {SETTINGS}" in failure_message(set_up, node, roles=["docker"])
    assert settings.read_text() == "{"


@pytest.fixture
def broken_vendor(node: Node) -> Iterator[None]:
    """Add a vendor's package repository that does not answer, and make the package lists old."""
    source = node.root / "etc/apt/sources.list.d/vendor.list"
    source.write_text("deb [trusted=yes] http://127.0.0.1:9/ubuntu ./\n")
    node.run("touch", "-d", "@0", "/var/lib/apt/lists", "/var/lib/apt/periodic/update-success-stamp")
    yield
    source.unlink()


def test_a_vendor_s_package_repository_that_does_not_answer_causes_a_warning(
    node: Node, set_up: SetUp, configured_node: ConfigurationResult, broken_vendor: None
) -> None:
    lines: list[str] = []
    set_up([node], lines.append, roles=["precheck", "docker"])
    assert [line for line in lines if line.startswith(f"warning: {node.name}: ") and "nevertheless" in line]


def test_packages_that_no_repository_offers_are_reported_before_any_change(
    node: Node, set_up: SetUp, configured_node: ConfigurationResult, broken_vendor: None
) -> None:
    said = failure_message(set_up, node, roles=["precheck"], extra={"precheck_packages": ["no-such-package"]})
    assert "precheck: Check the package repositories" in said


def test_too_little_disk_space_is_reported_before_any_change(
    node: Node, set_up: SetUp, configured_node: ConfigurationResult
) -> None:
    said = failure_message(set_up, node, roles=["precheck"], extra={"precheck_disk_gib": 10**6})
    assert "precheck: Check the free disk space" in said
    assert "needed: 1000000" in said


@pytest.fixture
def full_disk(node: Node) -> Iterator[str]:
    """Create a tiny file system on the node."""
    node.run("mkdir", "-p", "/var/full")
    node.run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/var/full")
    yield "/var/full"
    node.run("umount", "/var/full")


def test_a_disk_that_fills_up_is_named_with_a_fix(
    node: Node, set_up: SetUp, configured_node: ConfigurationResult, full_disk: str
) -> None:
    said = failure_message(
        set_up, node, roles=["nvidia_driver", "images"], extra={"images_save": f"{full_disk}/image.tar"}
    )
    assert "images: Save the image to an archive" in said
    assert "docker system prune" in said


@pytest.fixture
def other_installer(node: Node) -> Iterator[None]:
    """Hold the package manager's lock on the node."""
    lock = "file = open('/var/lib/dpkg/lock-frontend', 'w'); fcntl.lockf(file, fcntl.LOCK_EX)"
    hold = f"import fcntl, time; {lock}; time.sleep(600)"
    node.run("systemd-run", "--unit=installer", "python3", "-c", hold)
    yield
    node.run("systemctl", "stop", "installer")


def test_the_playbook_waits_for_a_locked_package_database_and_then_names_the_lock(
    node: Node, set_up: SetUp, configured_node: ConfigurationResult, other_installer: None
) -> None:
    wanted = {"packages_lock_timeout_s": 2, "docker_packages": ["docker.io", "hello"]}
    said = failure_message(set_up, node, extra=wanted)
    assert "docker: Install the Docker engine" in said
    assert "another program is installing packages" in said


def test_a_wrong_host_key_is_rejected(node: Node, login: LoginTo, tmp_path: Path) -> None:
    strange = new_key(tmp_path / "strange").with_suffix(".pub").read_text()
    (tmp_path / "known_hosts").write_text(f"{node.name} {strange}")
    with pytest.raises(NotReached, match=f"^{node.name}: .*Host key verification failed"):
        configure(
            [Machine(node.name, replace(login(node), known_hosts=tmp_path / "known_hosts"))],
            Setup(),
            print,
            logs=tmp_path,
        )


def test_an_interruption_ends_ansible_and_the_next_run_continues(
    node: Node, set_up: SetUp, configured_node: ConfigurationResult
) -> None:
    def interrupt(line: str) -> None:
        if "docker: Install" in line:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        set_up([node], interrupt, roles=["docker"])
    assert not [child for child in psutil.Process().children(recursive=True) if "ansible" in " ".join(child.cmdline())]
    assert set_up([node], roles=["docker"]).changed == ()


def test_the_build_of_an_image_does_not_store_the_password_of_the_package_index(
    node: Node, node_image: NodeImage, set_up: SetUp, configured_node: ConfigurationResult, tmp_path: Path
) -> None:
    built = set_up(
        [node],
        source="build",
        base_image=BASE,
        base_image_archive=fake_image(node_image.root, BASE, tmp_path / "base.tar"),
        pip_index=f"https://reader:{PASSWORD}@index.invalid/simple",
        ca_bundle=CA_BUNDLE,
        extra={"images_save": "/var/lib/llm-testbed/kept.tar"},
    )
    assert any("Build the image" in one for one in built.changed)
    assert PASSWORD not in built.log.read_text()
    node.run("test", "-s", "/var/lib/llm-testbed/kept.tar")
    assert not found_on(node, PASSWORD)


def found_on(node: Node, secret: str) -> bool:
    """Return whether a file on the node has the secret."""
    folders = ("/var/lib/llm-testbed", "/etc", "/home", "/root", "/tmp")
    search = f"grep --recursive --files-with-matches --no-messages {secret} {' '.join(folders)} || true"
    return node.run("sh", "-c", search) != ""


def test_nvtop_is_installed_where_a_repository_offers_it(node: Node, set_up: SetUp) -> None:
    assert set_up([node], roles=["monitoring"]).changed == ()
    source = node.root / "etc/apt/sources.list.d/multiverse.list"
    source.write_text("deb http://archive.ubuntu.com/ubuntu noble multiverse\n")
    try:
        node.run("apt-get", "update", "--quiet=2")
        (changed,) = set_up([node], roles=["monitoring"]).changed
        assert changed.startswith("monitoring: Install the package that shows the load of the GPUs")
        node.run("test", "-x", "/usr/bin/nvtop")
        assert set_up([node], roles=["monitoring"]).changed == ()
    finally:
        source.unlink()


def test_ansible_lint_passes() -> None:
    lint = [sys.executable, "-m", "ansiblelint", "--offline", "--profile", "production", "--nocolor", str(ANSIBLE)]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(lint, capture_output=True, text=True, env=os.environ | {"PATH": path})
    assert done.returncode == 0, done.stdout + done.stderr


def pulling(reference: str, **options: Any) -> dict[str, Any]:
    insecure = {"docker_daemon_settings": {"insecure-registries": [reference.partition("/")[0]]}}
    return {"roles": PULLING, "source": "pull", "reference": reference, "extra": insecure, **options}


def test_an_image_is_pulled_from_a_registry(
    node: Node, archive: Path, set_up: SetUp, configured_node: ConfigurationResult, settings: Path
) -> None:
    with serve_image(network.GATEWAY, archive, "group/testbed:1", busy=1) as reference:
        wanted = pulling(reference)
        assert "images: Pull the image" in " ".join(set_up([node], **wanted).changed)
        assert reference in node.run("docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}").split()
        assert set_up([node], **wanted).changed == ()
        missing = failure_message(set_up, node, **wanted | {"reference": reference + "0"})
        assert "images: Pull the image" in missing


def test_the_rate_limit_of_a_registry_is_reported_with_a_fix(
    node: Node, archive: Path, set_up: SetUp, configured_node: ConfigurationResult, settings: Path
) -> None:
    with serve_image(network.GATEWAY, archive, "group/limited:1", busy=1000) as reference:
        said = failure_message(set_up, node, **pulling(reference))
    assert "rate limit" in said
    assert "--registry-login" in said


def test_a_registry_s_login_is_used_and_stored_nowhere(
    node: Node, archive: Path, set_up: SetUp, configured_node: ConfigurationResult, settings: Path, tmp_path: Path
) -> None:
    login, secret = f"reader:{PASSWORD}", base64.b64encode(f"reader:{PASSWORD}".encode()).decode()
    with serve_image(network.GATEWAY, archive, "group/private:1", login) as reference:
        assert "log in to the registry" in failure_message(set_up, node, **pulling(reference))
        file = tmp_path / "config.json"
        file.write_text(json.dumps({"auths": {reference.partition("/")[0]: {"auth": secret}}}))
        pulled = set_up([node], **pulling(reference, registry_login=file))
    assert "images: Pull the image" in " ".join(pulled.changed)
    assert secret not in pulled.log.read_text()
    assert not found_on(node, secret)
