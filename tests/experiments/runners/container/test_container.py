"""The requests that rows in containers send to a fake Docker. tests/testbed/node/test_containers.py uses a real one."""

import hashlib
import os
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.errors import InputError
from experiments.runners.container import engine, image
from experiments.runners.container.image import build_options, failure_in, origin_label
from experiments.runners.container.runner import ContainerRunner
from experiments.runners.targets import target_named
from experiments.suites.row_spec import RowSpec
from experiments.system.files import write_atomically
from provision.configure.build_context import PROJECT
from tests.support.runners import rows as sample_rows
from tests.support.runners.fake_view import RecordingView

CDI = {"DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=0"}]}
TOOLKIT: dict[str, Any] = {"Runtimes": {"nvidia": {}, "runc": {}}}
SECOND = sample_rows.GPU.__class__(1, sample_rows.GPU.name, sample_rows.GPU.memory_gib, "GPU-b")


@pytest.mark.parametrize(
    ("info", "driver", "ids", "capabilities"),
    [
        (CDI, "cdi", ["nvidia.com/gpu=0", "nvidia.com/gpu=1"], []),
        (TOOLKIT, "", ["0", "1"], [["gpu"]]),
        (TOOLKIT | CDI, "cdi", ["nvidia.com/gpu=0", "nvidia.com/gpu=1"], []),
    ],
)
def test_gpus_are_requested_by_cdi_if_docker_offers_it_and_otherwise_from_the_nvidia_runtime(
    info, driver, ids, capabilities
):
    (request,) = engine.gpu_requests(info, [0, 1])
    assert (request["Driver"], request["DeviceIDs"], request["Capabilities"]) == (driver, ids, capabilities)
    assert engine.gpu_requests(info, []) == []
    assert engine.has_gpus({"DeviceRequests": [dict(request)]})


def test_a_docker_without_gpus_is_an_error_with_the_fix():
    with pytest.raises(InputError, match="gives containers no GPU; install the package nvidia-container-toolkit"):
        engine.gpu_requests({"Runtimes": {"runc": {}}, "DiscoveredDevices": None}, [0])


def container(name, **host_config):
    return SimpleNamespace(name=name, attrs={"HostConfig": {"DeviceRequests": None, "Devices": None} | host_config})


def docker_with(*containers):
    return SimpleNamespace(containers=SimpleNamespace(list=lambda **options: list(containers)))


def test_other_running_containers_with_gpus_are_named_with_the_command_that_stops_them():
    count = {"Driver": "", "Count": -1, "DeviceIDs": None, "Capabilities": [["gpu"]]}
    others = [
        container("web"),
        container("jupyter", DeviceRequests=[count]),
        container("by-file", Devices=[{"PathOnHost": "/dev/x", "PathInContainer": "/dev/nvidia0"}]),
        container("by-runtime", Runtime="nvidia"),
    ]
    with pytest.raises(InputError) as caught:
        engine.require_free_gpus(docker_with(*others))
    stop = "docker stop by-file by-runtime jupyter"
    assert str(caught.value) == f"--in-container: other containers have GPUs; stop them first: {stop}"
    engine.require_free_gpus(docker_with(container("web", Devices=[{"PathInContainer": "/dev/fuse"}])))


def options(tmp_path, spec: RowSpec, *gpus, cpus: int = 4):
    """Return the options of a row's container; the row is the first on a machine with these GPUs."""
    folder = sample_rows.folder(tmp_path / "run", spec.row)
    client = SimpleNamespace(info=lambda: CDI)
    machine = sample_rows.node(*gpus, cpus=cpus), 64.0, RecordingView()
    runner = ContainerRunner(client, "sha256:1", folder, *machine, grace_s=1.0)
    place = folder.row_folder(spec)
    place.mkdir(parents=True)
    allocation = runner._pool.allocate(spec)
    assert allocation
    return runner._options(spec, place, allocation), place


def test_a_row_s_container_gets_its_gpus_and_folders_and_runs_as_the_user_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("TESTBED_CACHE", str(tmp_path / "cache"))
    made, place = options(tmp_path, sample_rows.spec(weights="random", data="synthetic"), sample_rows.GPU, SECOND)
    assert [dict(request)["DeviceIDs"] for request in made["device_requests"]] == [["nvidia.com/gpu=0"]]
    run = str(place.parent.parent)
    folders = [str(tmp_path / "cache"), run]
    assert made["volumes"] == {folder: {"bind": folder, "mode": "rw"} for folder in folders}
    assert (made["network_mode"], made["ipc_mode"], made["user"]) == ("none", "host", f"{os.getuid()}:{os.getgid()}")
    assert made["environment"]["TESTBED_IMAGE"] == "sha256:1"
    assert made["environment"]["HF_HUB_OFFLINE"] == "1"


def test_a_row_on_the_cpu_has_all_cores_and_no_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    made, _ = options(tmp_path, sample_rows.spec(**sample_rows.ON_CPU), sample_rows.GPU, SECOND)
    assert (made["device_requests"], made["cpuset_cpus"]) == ([], "0,1,2,3")


def test_data_of_the_user_is_mounted_read_only_and_pretrained_weights_need_the_network(tmp_path, monkeypatch):
    monkeypatch.setenv("TESTBED_CACHE", str(tmp_path / "cache"))
    (data := tmp_path / "captions").mkdir()
    made, _ = options(tmp_path, sample_rows.spec(weights="pretrained", data=str(data)))
    assert made["volumes"][str(data)] == {"bind": str(data), "mode": "ro"}
    assert (made["network_mode"], made["environment"]["HF_HUB_OFFLINE"], made["device_requests"]) == ("bridge", "0", [])


def test_rows_use_the_image_name_and_label_that_the_playbook_uses_on_nodes(tmp_path):
    write_atomically(tmp_path / "context", "made up")
    assert image.role_variables("vars")["images_name"] == image.image_name("{{ images_variant }}")  # type: ignore[arg-type] # a template
    assert image.role_variables("vars")["images_label"] == "llm-testbed.made-from"
    sha1 = hashlib.sha1(b"made up").hexdigest()
    assert origin_label("as-taught", tmp_path / "context") == f"pytorch/pytorch:2.5.1-cuda12.4-cudnn9-devel {sha1}"


def test_the_build_gets_the_arguments_of_the_dockerfile_and_the_package_index_as_a_secret(tmp_path, monkeypatch):
    monkeypatch.setenv(image.PIP_INDEX_VARIABLE, "https://me:secret@index")
    made = build_options("as-taught", "a=b", tmp_path)
    dockerfile = (PROJECT / "containers/Dockerfile").read_text()
    arguments = [value.partition("=")[0] for flag, value in pairwise(made) if flag == "--build-arg"]
    assert arguments == ["BASE_IMAGE", "PINS", "COMMIT"]
    assert all(f"ARG {name}=" in dockerfile for name in arguments)
    assert "PINS=as-taught.txt" in made
    assert "secret@" not in " ".join(made)
    assert (tmp_path / "pip.conf").stat().st_mode & 0o777 == 0o600


def test_the_image_contains_compiled_python_files_because_its_user_cannot_write_them():
    _, _, after_copy = (PROJECT / "containers/Dockerfile").read_text().partition("COPY experiments experiments\n")
    assert "python -m compileall -q -j 0 experiments provision" in after_copy


PIP_FAILED = """
#9 12.1 ERROR: No matching distribution found for torch==9
#9 ERROR: process "/bin/sh -c pip install" did not complete successfully: exit code: 1
------
 > [stage-1 5/12] RUN pip install:
11.9 Looking in indexes: https://pypi.org/simple
12.1 ERROR: No matching distribution found for torch==9
------
Dockerfile:31
ERROR: failed to build: failed to solve: process "/bin/sh -c pip install" did not complete successfully: exit code: 1
"""
NO_REGISTRY = """
 > [internal] load metadata for docker.io/pytorch/pytorch:2:
------
ERROR: failed to build: failed to solve: pytorch/pytorch:2: failed to resolve source metadata: no such host
"""


@pytest.mark.parametrize(
    ("output", "line"),
    [
        (PIP_FAILED, "No matching distribution found for torch==9"),
        (NO_REGISTRY, "pytorch/pytorch:2: failed to resolve source metadata: no such host"),
        ("", "no output"),
    ],
)
def test_a_failed_build_is_reported_with_its_most_informative_line(output, line):
    assert failure_in(output.splitlines()) == line


def test_a_missing_docker_is_an_error_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(InputError, match=r"^--in-container: Docker does not run here; install it .*systemctl start"):
        engine.connect()


def test_the_option_in_container_is_rejected_for_other_machines_than_this_one():
    with pytest.raises(InputError, match="--in-container: allowed with --site local only"):
        target_named("chameleon", None, None, in_container=True)
    with pytest.raises(InputError, match=r"--versions as-taught: allowed on leased machines .* or with --in-container"):
        target_named("local", None, None, image_variant="as-taught")
    assert target_named("local", None, None, image_variant="as-taught", in_container=True).software() is not None
