"""Clusters and leased nodes as targets of runs; no connection is opened."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from experiments.errors import InputError
from experiments.runners import targets
from experiments.runners.slurm import cluster as module
from experiments.runners.slurm.cluster import Cluster, code_archive
from experiments.runners.slurm.profile import Profile
from experiments.runners.targets import ClusterTarget, leased_profile, monitor_target, target_named
from experiments.system.files import CODE_FOLDER
from provision import reproducible
from provision.errors import CommandFailed
from provision.leasing.journal import Journal, Operation
from tests.support.runners import rows as sample_rows
from tests.support.runners.fake_cluster import DroppingShell


@pytest.mark.parametrize(
    ("site", "profile", "account", "message"),
    [
        ("slurm", None, None, "--site slurm: needs --profile"),
        ("slurm", "puhti", None, "jobs at Puhti need --account"),
        ("local", "puhti", None, "--profile puhti: allowed with --site slurm only"),
        (
            "chameleon",
            None,
            None,
            "--site chameleon: no lease with a reachable machine; create one with `testbed lease`",
        ),
    ],
)
def test_a_target_that_is_not_described_completely_is_rejected_in_one_line(site, profile, account, message, tmp_path):
    with pytest.raises(InputError, match=message):
        target_named(site, profile, account, Journal(tmp_path))


@pytest.mark.parametrize(
    ("begins", "ends", "message"),
    [
        (2, 4, "llm_cc is PENDING until 20"),
        (-1, 4, "llm_cc has started, but no node has answered; `testbed lease` boots its nodes"),
        (-4, -1, "llm_cc ended 20"),
        (None, None, "llm_cc is not reserved yet; `testbed lease` resumes the reservation"),
    ],
)
@pytest.mark.parametrize("connect", [target_named, monitor_target], ids=["run", "top"])
def test_the_error_for_a_lease_whose_nodes_cannot_be_reached_yet_says_why(connect, begins, ends, message, tmp_path):
    journal = Journal(tmp_path)
    active_lease = journal.open_lease("llm_cc", "CHI@UC")
    if begins is not None:
        start, end = ((datetime.now(UTC) + timedelta(hours=hours)).isoformat() for hours in (begins, ends))
        journal.write("done", active_lease, Operation.CREATE_LEASE, id="1", start=start, end=end)
    more = [None, None] if connect is target_named else [None]
    with pytest.raises(InputError, match=f"no lease with a reachable machine; {message}"):
        connect("chameleon", *more, journal)


def test_a_leased_node_runs_rows_in_the_image_with_all_its_gpus():
    profile = leased_profile(sample_rows.node(sample_rows.GPU, sample_rows.GPU, cpus=64), 2)
    assert (profile.runtime, profile.environment, profile.partition) == ("docker", "llm-testbed:current", "gpu")
    assert (profile.gpus_per_node, profile.cpus_per_node) == (2, 64)
    assert (profile.nodes, profile.shared_folder) == (2, False)


def test_a_leased_node_runs_rows_in_the_image_of_the_requested_versions(monkeypatch, tmp_path):
    """Fakes: the leased node, and its hardware."""
    machine = SimpleNamespace(login=SimpleNamespace(host="192.0.2.1"))
    active_lease = SimpleNamespace(machines=(machine,), outcomes={})
    monkeypatch.setattr(targets, "_only_active_lease", lambda site, journal: active_lease)
    monkeypatch.setattr(targets, "remote_node", lambda shell: sample_rows.node(sample_rows.GPU))
    target = target_named("chameleon", None, None, Journal(tmp_path), "as-taught")
    assert isinstance(target, ClusterTarget)
    assert target.cluster.profile.environment == "llm-testbed:as-taught"


def test_the_archive_of_the_code_is_reproducible():
    assert code_archive() == code_archive()


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A cluster on this machine, with an archive of one file as its code; its Python prints the code's checksum."""
    profile = Profile(name="x", title="X", cpus_per_node=8, memory_per_node_gib=32, folder=str(tmp_path / "runs"))
    made = Cluster(DroppingShell(), profile)
    monkeypatch.setattr(module, "TOOLS", ("tar",))
    monkeypatch.setattr(module, "code_archive", lambda: CODE)
    monkeypatch.setattr(module, "code_sha256", lambda: "the code")
    monkeypatch.setattr(made, "python_output", lambda code: "the code")
    return made


CODE = reproducible.archive_in_memory({"experiments/a.py": CODE_FOLDER / "experiments" / "errors.py"})


def fail(code):
    raise CommandFailed("no papermill", 1)


def test_the_code_is_uploaded_once_and_the_folder_of_the_run_each_time(cluster, tmp_path, monkeypatch):
    folder = sample_rows.folder(tmp_path / "here", "a")
    uploads, put = [], cluster.shell.put
    monkeypatch.setattr(
        cluster.shell, "put", lambda data, path, **more: (uploads.append(path), put(data, path, **more))
    )
    for _ in range(2):
        cluster.prepare(folder)
    archive, *runs = uploads
    (code,) = [path for path in (tmp_path / "runs" / "code").iterdir() if path.is_dir()]
    assert (code / "experiments" / "a.py").exists()
    assert archive == f"{code}.tar.gz"
    assert runs == [f"{tmp_path}/runs/20261121-1200-lab/run.json"] * 2
    assert code.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    ("python_output", "message"),
    [
        (lambda code: "other code", "profile x: venv: has different training code; rebuild it from this checkout"),
        (fail, "profile x: venv: its Python cannot run rows: no papermill"),
    ],
)
def test_a_cluster_that_cannot_run_this_code_is_rejected(cluster, tmp_path, monkeypatch, python_output, message):
    monkeypatch.setattr(cluster, "python_output", python_output)
    with pytest.raises(InputError, match=message):
        cluster.prepare(sample_rows.folder(tmp_path / "here", "a"))


def test_library_versions_on_a_cluster_are_unknown_if_its_python_does_not_start(cluster, monkeypatch):
    monkeypatch.setattr(cluster, "python_output", fail)
    assert cluster.software() is None


def test_python_on_a_cluster_starts_with_the_environment_of_the_profile(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "activate").write_text("echo activated\n")
    profile = Profile(
        name="x", title="X", cpus_per_node=8, memory_per_node_gib=32, folder=str(tmp_path), environment=str(tmp_path)
    )
    output = Cluster(DroppingShell(), profile).python_output("print(6 * 7)")
    assert output.split() == ["activated", "42"]
