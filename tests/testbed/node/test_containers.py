"""Rows in containers, with a real Docker on this machine. The image's packages are those of this environment."""

import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker import DockerClient

from experiments.errors import InputError
from experiments.results.run_folder import RunFolder
from experiments.results.schema import RESULT_FILE
from experiments.runners.container import engine, image
from experiments.runners.container.runner import ROW_LABEL
from experiments.system.files import CODE_FOLDER, cache_folder
from provision.configure.build_context import PROJECT
from tests.support.needs import need
from tests.support.processes.waiting import wait_for
from tests.support.services.local_docker import daemon, load_image
from tests.testbed.node.base_image import NAME as BASE
from tests.testbed.node.base_image import base_archive

SUITE = "single_gpu_litgpt"
RUN = f"{SUITE}-a100_80gb-tiny-verdict-container"
NOBODY = 65534
SMALL = f"FROM {BASE}\nCOPY containers/Dockerfile /made\n"
FAILS = f"FROM {BASE}\nCOPY nothing /made\n"


@pytest.fixture(scope="module")
def docker() -> Iterator[DockerClient]:
    """Start Docker, in the environment of this process; it has the base image and a substitute of the project's."""
    need(("mmdebstrap", "gpg", "iptables"), "mmdebstrap gpg iptables", root=True)
    if not any(path.startswith(str(cache_folder())) and path.endswith("site-packages") for path in sys.path):
        pytest.skip("needs the environment in the cache folder, as `make test-node` has it")
    with daemon(print) as variables, pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        client = engine.connect()
        load_image(client, base_archive(print))
        yield client


@pytest.fixture(autouse=True)
def nothing_left(docker: DockerClient) -> Iterator[None]:
    yield
    assert [one.name for one in docker.containers.list(all=True)] == []


def start(results: Path, *rows: str) -> subprocess.Popen[str]:
    options = ["--no-predict", "--in-container", "--results", str(results)]
    command = [sys.executable, "-m", "experiments", "run", SUITE, *(f"--row={row}" for row in rows), *options]
    environment = os.environ | {"PYTHONPATH": str(CODE_FOLDER)}
    return subprocess.Popen(
        command, env=environment, cwd=results.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_a_row_trains_in_a_container_of_the_image(docker: DockerClient, tmp_path: Path) -> None:
    output, _ = start(tmp_path / "results", "tiny-lora").communicate()
    assert "tiny-lora: ran (miniature)" in output, output
    folder = RunFolder(tmp_path / "results" / RUN)
    result = folder.results()["tiny-lora"]
    assert (result.outcome, result.image) == ("fits", docker.images.get(image.image_name("current")).id)
    assert folder.read_run().in_container
    place = folder.row_folder_named("tiny-lora")
    assert {path.name for path in place.iterdir()} >= {"log.txt", "notebook.ipynb", "result.json", "telemetry.csv"}


def test_a_row_s_container_has_no_network_and_is_removed_if_its_command_is_stopped(
    docker: DockerClient, tmp_path: Path
) -> None:
    run = start(tmp_path / "results", "tiny-lora")
    wait_for(lambda: docker.containers.list(filters={"label": ROW_LABEL}), within_s=60)
    (container,) = docker.containers.list(filters={"label": ROW_LABEL})
    configured = container.attrs["HostConfig"]
    assert (configured["NetworkMode"], configured["IpcMode"], configured["Init"]) == ("none", "host", True)
    assert container.attrs["Config"]["User"] == f"{os.getuid()}:{os.getgid()}"
    assert container.attrs["NetworkSettings"]["IPAddress"] == ""
    run.send_signal(signal.SIGTERM)
    output, _ = run.communicate()
    assert (run.returncode, output.splitlines()[-1].startswith("testbed: interrupted")) == (130, True), output
    assert not list((tmp_path / "results" / RUN).rglob(RESULT_FILE))


def test_a_container_that_ends_without_a_result_is_an_error_with_its_last_line(
    docker: DockerClient, tmp_path: Path
) -> None:
    run = start(tmp_path / "results", "tiny-lora")
    wait_for(lambda: docker.containers.list(filters={"label": ROW_LABEL}), within_s=60)
    docker.containers.list(filters={"label": ROW_LABEL})[0].kill()
    run.communicate()
    result = RunFolder(tmp_path / "results" / RUN).results()["tiny-lora"]
    assert (result.outcome, result.reason.startswith("ended without a result: ")) == ("error", True)


def test_containers_of_a_killed_command_are_removed_and_others_stay(docker: DockerClient) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    for name, owner in {"abandoned": ended.pid, "in-use": os.getpid()}.items():
        docker.containers.create(BASE, ["true"], name=name, labels={engine.RUNNER_LABEL: str(owner)})
    engine.remove_abandoned_containers(docker)
    assert [one.name for one in docker.containers.list(all=True)] == ["in-use"]
    engine.remove_container(docker.containers.get("in-use"))


def test_a_running_container_with_a_gpu_is_named(docker: DockerClient) -> None:
    devices = {"devices": ["/dev/null:/dev/nvidia0"], "network_mode": "none"}
    other = docker.containers.run(BASE, ["sleep", "600"], name="other", detach=True, **devices)
    with pytest.raises(InputError, match=r"stop them first: docker stop other$"):
        engine.require_free_gpus(docker)
    engine.remove_container(other)
    engine.require_free_gpus(docker)


def test_a_docker_socket_without_permission_is_reported_in_one_line(docker: DockerClient) -> None:
    os.seteuid(NOBODY)
    try:
        with pytest.raises(InputError, match=r"^--in-container: your user may not use Docker; usermod -aG docker"):
            engine.connect()
    finally:
        os.seteuid(0)


@pytest.fixture
def dockerfile(docker: DockerClient, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Yield a list; its first text is the Dockerfile of the next build of the variant as-taught."""
    texts: list[str] = []

    def write(archive: Path, project: Path = PROJECT) -> None:
        folder = archive.parent / "containers"
        folder.mkdir(exist_ok=True)
        (folder / "Dockerfile").write_text(texts[0])
        with tarfile.open(archive, "w:gz") as target:
            target.add(folder, "containers")

    monkeypatch.setattr(image, "write_build_context", write)
    yield texts
    for name in docker.images.list(image.image_name("as-taught")):
        docker.images.remove(name.id, force=True)


def test_a_missing_image_is_built_once_with_its_steps_shown(docker: DockerClient, dockerfile: list[str]) -> None:
    says: list[str] = []
    dockerfile.append(SMALL)
    built = image.ensure_image(docker, "as-taught", says.append)
    assert says[0].startswith("building llm-testbed:as-taught: the first time")
    assert any(line.startswith("image: [2/2] COPY containers/Dockerfile /made") for line in says), says
    assert docker.images.get(built).labels["llm-testbed.made-from"].startswith("pytorch/pytorch:2.5.1")


def test_an_image_with_other_code_is_built_again(docker: DockerClient, dockerfile: list[str]) -> None:
    says: list[str] = []
    dockerfile.append(SMALL)
    first = image.ensure_image(docker, "as-taught", says.append)
    dockerfile[0] = SMALL.replace("/made", "/again")
    assert image.ensure_image(docker, "as-taught", says.append) != first
    assert "building llm-testbed:as-taught, because the image has different code" in says


def test_a_failed_build_is_reported_in_one_line(docker: DockerClient, dockerfile: list[str]) -> None:
    dockerfile.append(FAILS)
    with pytest.raises(InputError, match=r"^--in-container: the image cannot be built: .*\"/nothing\" not found"):
        image.ensure_image(docker, "as-taught", print)


def test_without_buildx_the_package_to_install_is_named(
    docker: DockerClient, dockerfile: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    dockerfile.append(SMALL)
    with pytest.raises(InputError, match=r"apt install docker-buildx$"):
        image.ensure_image(docker, "as-taught", print)
