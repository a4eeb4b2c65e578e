"""A whole run with a fake runner: options, plan, results and report."""

from dataclasses import replace
from typing import Any, ClassVar

import pytest

from experiments import pipeline
from experiments.errors import InputError
from experiments.history.outside_steps import outside_steps
from experiments.inputs.dataset import folder_sha256
from experiments.pipeline import options_per_suite, run_suite, run_suites
from experiments.results.run_folder import RunFolder
from experiments.results.schema import EARLIER_FOLDER, read_result
from experiments.run_options import RunOptions, default_run_id
from experiments.runners import software, targets
from experiments.runners.local.runner import clear_row_folder
from experiments.runners.progress import View
from experiments.runners.slurm.cluster import Cluster
from experiments.runners.slurm.profile import profile_named
from experiments.runners.targets import ClusterTarget, LocalTarget
from provision.errors import UnknownHost
from provision.hardware import gpus
from provision.models import Gpu
from provision.ssh.login import SshConfigHost
from provision.ssh.shell import LocalShell
from provision.ssh.ssh_shell import SshShell
from tests.support.runners import rows as sample_rows
from tests.support.runners.fake_runner import SLURM, SUITE, FakeRunner
from tests.support.runners.fake_view import RecordingView

H200 = Gpu(0, "NVIDIA H200", 139.8, "GPU-h")
H100 = Gpu(0, "NVIDIA H100 NVL", 93.2, "GPU-n")


def recorded_options(path, **options):
    done = run_suite(RunOptions(SUITE, results=path, **options), RecordingView())
    run = RunFolder(done.folder).read_run()
    return run.card, run.size


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        ((), ("a100_80gb", "tiny")),
        ((sample_rows.GPU,), ("a100_80gb", "full")),
        ((H100,), ("h100_94gb", "full")),
        ((H200,), ("a100_80gb", "full")),
        ((sample_rows.T4,), ("a100_80gb", "tiny")),
    ],
)
def test_the_default_card_and_size_depend_on_the_gpu_of_the_machine(machine, tmp_path, gpus, expected):
    machine(*gpus)
    assert recorded_options(tmp_path, rows=("reduced-batch",)) == expected


def test_a_run_of_miniatures_on_a_machine_with_a_gpu_says_why_its_models_are_tiny(machine, tmp_path):
    machine(sample_rows.T4)
    run_suite(RunOptions(SUITE, rows=("xxl",), results=tmp_path), view := RecordingView())
    assert "size tiny, because device NVIDIA T4 has 14.6 GiB, a100_80gb needs 79.2 GiB" in view.text.getvalue()


def test_a_gpu_without_bfloat16_hardware_causes_a_warning(machine, tmp_path):
    machine(Gpu(0, "Tesla V100-SXM2-32GB", 31.74, "GPU-v"))
    for row, warned in (("reduced-batch", False), ("reduced-precision", True)):
        run_suite(RunOptions(SUITE, rows=(row,), results=tmp_path / row), view := RecordingView())
        assert ("computes bfloat16 in software" in view.text.getvalue()) == warned


def test_options_that_the_user_gives_are_not_changed(machine, tmp_path):
    machine(H200)
    assert recorded_options(tmp_path, rows=("xxl",), card="h100_94gb", size="tiny") == ("h100_94gb", "tiny")


def test_the_default_run_id_contains_the_options_that_identify_the_run():
    resolved = RunOptions(SUITE, card="a100_80gb", size="tiny")
    assert default_run_id(resolved) == f"{SUITE}-a100_80gb-tiny-verdict"
    other = replace(
        resolved,
        card="h100_94gb",
        size="full",
        length="as-taught",
        weights="pretrained",
        input="with-image",
        gpus_per_node=2,
        data="folder",
    )
    assert default_run_id(other) == f"{SUITE}-h100_94gb-full-as-taught-pretrained-with-image-2gpus-realdata"
    leased = replace(resolved, size="full", site="chameleon", image_variant="as-taught")
    assert default_run_id(leased).endswith("-verdict-chameleon-as-taught-versions")
    slurm = replace(resolved, site="slurm", profile="clusters/mine.yaml", weights="pretrained")
    assert default_run_id(slurm).endswith("-verdict-mine-pretrained")


def test_the_option_gpus_per_node_limits_the_gpus_of_each_node_on_which_rows_run(machine, tmp_path):
    options = RunOptions(SLURM, rows=("neo-1gpu", "neo-8gpu-ddp"), gpus_per_node=2, results=tmp_path)
    done = run_suite(options, RecordingView())
    assert done.folder.name == f"{SLURM}-v100_32gb-tiny-verdict-2gpus"
    ran = {row: result.spec.settings for row, result in RunFolder(done.folder).results().items()}
    assert {row: (one.nodes, one.devices) for row, one in ran.items()} == {"neo-1gpu": (1, 1), "neo-8gpu-ddp": (2, 2)}
    outcome = next(verdict for verdict in done.evaluation.verdicts if verdict.id == "neo-8gpu-ddp/outcome")
    assert (outcome.status, outcome.grade) == ("pass", "predicted"), "a prediction is of all ranks"


def test_a_run_of_predictions_evaluates_the_predictions_and_runs_no_row(machine, tmp_path):
    options = RunOptions(SUITE, card="h100_94gb", predict_only=True, results=tmp_path)
    done = run_suite(options, RecordingView())
    assert FakeRunner.ran == []
    assert RunFolder(done.folder).results() == {}
    assert {verdict.grade for verdict in done.evaluation.verdicts if verdict.status == "pass"} == {"predicted"}
    run_suite(replace(options, predict_only=False), RecordingView())
    assert {*FakeRunner.ran} == {*RunFolder(done.folder).read_run().rows}


def test_a_run_continues_only_with_the_same_number_of_gpus(machine, tmp_path):
    options = RunOptions(SLURM, rows=("neo-4gpu-ddp",), run_id="mine", results=tmp_path)
    run_suite(options, RecordingView())
    with pytest.raises(InputError, match="has results with gpus_per_node None, but gpus_per_node is now 2"):
        run_suite(replace(options, gpus_per_node=2), RecordingView())


def run_two_suites(*suites, view=None, **options):
    return list(run_suites(options_per_suite(suites, RunOptions(suites[0], **options)), view or RecordingView()))


def test_each_of_several_suites_has_a_folder_and_the_link_latest_leads_to_the_last(machine, tmp_path):
    first, second = run_two_suites(SUITE, SLURM, rows=("xxl", "neo-1gpu"), results=tmp_path)
    assert FakeRunner.ran == ["xxl", "neo-1gpu"]
    assert (first.evaluation.run.suite, second.evaluation.run.suite) == (SUITE, SLURM)
    assert first.report.is_file()
    assert (tmp_path / "latest").resolve() == second.folder.resolve()


def test_a_suite_without_the_requested_rows_is_left_out():
    asked = RunOptions(SUITE, rows=("neo-1gpu", "neo-inference"))
    assert [(one.suite, one.rows) for one in options_per_suite([SUITE, SLURM, SUITE], asked)] == [(SLURM, asked.rows)]
    assert [one.suite for one in options_per_suite([SUITE, SLURM, SUITE], RunOptions(SUITE))] == [SUITE, SLURM]


@pytest.mark.parametrize("change", [{"card": "h100_94gb"}, {"gpus_per_node": 3}, {"rows": ("nope",)}])
def test_nothing_is_run_or_written_if_one_of_several_suites_is_invalid(machine, tmp_path, change):
    with pytest.raises(InputError):
        run_two_suites(SUITE, SLURM, results=tmp_path / "results", **change)
    assert not (tmp_path / "results").exists()


def test_no_row_runs_if_the_folder_of_one_of_several_suites_has_results_with_other_options(machine, tmp_path):
    run_two_suites(SLURM, rows=("neo-1gpu",), results=tmp_path)
    folder = RunFolder(tmp_path / f"{SLURM}-v100_32gb-tiny-verdict")
    folder.write_run(folder.read_run().model_copy(update={"size": "full"}))
    with pytest.raises(InputError, match="has results with size full, but size is now tiny"):
        run_two_suites(SUITE, SLURM, results=tmp_path)
    assert FakeRunner.ran == ["neo-1gpu"]
    assert not list(tmp_path.glob(f"{SUITE}*"))


def test_no_row_runs_if_all_rows_of_one_suite_are_rejected(machine, tmp_path):
    machine(sample_rows.GPU)
    with pytest.raises(InputError, match="8 GPUs are needed, there is 1"):
        run_two_suites(SUITE, SLURM, rows=("xxl", "neo-8gpu-ddp"), results=tmp_path)
    assert FakeRunner.ran == []


def test_a_run_writes_report_and_verdicts_and_the_link_latest(machine, tmp_path):
    done = run_suite(RunOptions(SUITE, rows=("xxl", "baseline"), results=tmp_path), RecordingView())
    assert done.report.is_file()
    assert done.report.parent == done.folder
    assert (tmp_path / "latest").resolve() == done.folder.resolve()
    assert FakeRunner.ran == ["baseline", "xxl"]
    assert done.evaluation.run.rows == ("baseline", "xxl")


def test_the_connection_to_a_cluster_is_checked_before_anything_is_predicted_or_written(machine, tmp_path, monkeypatch):
    done = run_suite(RunOptions(SUITE, rows=("xxl",), results=tmp_path), RecordingView())
    profile = profile_named("mahti").model_copy(update={"host": "nosuch.invalid", "account": "project_1"})
    cluster = Cluster(SshShell(SshConfigHost("nosuch.invalid")), profile)
    monkeypatch.setattr(pipeline, "connect_target", lambda options: ClusterTarget(profile.node, cluster))
    options = RunOptions(SUITE, rows=("xxl",), results=tmp_path, site="slurm", profile="mahti", run_id="mine")
    with pytest.raises(UnknownHost, match=r"unknown host; add to ~/.ssh/config: 'Host nosuch.invalid'"):
        run_suite(options, view := RecordingView())
    assert (tmp_path / "latest").resolve() == done.folder.resolve()
    assert not (tmp_path / "mine" / "run.json").exists()
    assert view.lines == []


def test_a_repeated_run_runs_only_rows_without_a_result(machine, tmp_path):
    run_suite(RunOptions(SUITE, rows=("xxl",), results=tmp_path), RecordingView())
    view = RecordingView()
    done = run_suite(RunOptions(SUITE, rows=("xxl", "baseline"), results=tmp_path), view)
    assert FakeRunner.ran == ["xxl", "baseline"]
    assert "xxl: result kept (finished: fits)" in view.lines
    assert done.evaluation.run.rows == ("baseline", "xxl")
    run_suite(RunOptions(SUITE, rows=("xxl",), results=tmp_path, rerun=True), RecordingView())
    assert FakeRunner.ran == ["xxl", "baseline", "xxl"]


def test_a_row_runs_again_with_other_library_versions_and_its_old_result_is_stored(machine, tmp_path, monkeypatch):
    options = RunOptions(SUITE, rows=("xxl",), results=tmp_path)
    folder = RunFolder(run_suite(options, RecordingView()).folder)
    monkeypatch.setattr(software, "versions", lambda: {"torch": "99.0"})
    run_suite(replace(options, keep_outdated=True), view := RecordingView())
    assert FakeRunner.ran == ["xxl"]
    assert any("xxl: result kept (finished: fits; --keep-outdated: torch 2" in line for line in view.lines)
    run_suite(options, RecordingView())
    assert FakeRunner.ran == ["xxl", "xxl"]
    clear_row_folder(folder.row_folder_named("xxl"))
    (earlier,) = (folder.row_folder_named("xxl") / EARLIER_FOLDER).iterdir()
    assert read_result(earlier).outcome == "fits"


def test_an_outdated_result_of_a_row_that_cannot_run_on_this_machine_is_kept(machine, tmp_path, monkeypatch):
    machine(sample_rows.GPU)
    options = RunOptions(SUITE, rows=("xxl",), results=tmp_path, card="a100_80gb", size="full")
    folder = RunFolder(run_suite(options, RecordingView()).folder)
    machine()
    monkeypatch.setattr(software, "versions", lambda: {"torch": "99.0"})
    run_suite(options, view := RecordingView())
    assert "xxl: result kept (cannot run here: no GPU: full size needs one; size tiny runs anywhere)" in view.lines
    assert folder.results()["xxl"].outcome == "fits"


def test_a_run_at_full_size_shows_the_times_of_stored_runs(machine, tmp_path, monkeypatch):
    machine(sample_rows.GPU)
    options = RunOptions(SUITE, rows=("xxl", "xxl-sgd"), results=tmp_path, card="a100_80gb", size="full")
    run_suite(options, view := RecordingView())
    assert [line for line in view.lines if line.startswith(f"time on 1 GPU: {SUITE} ")]
    assert {row: time.seconds > time.start_s > 0 for row, time in FakeRunner.expected.items()} == dict.fromkeys(
        options.rows, True
    )
    warm_s = FakeRunner.expected["xxl"].start_s
    run_suite(replace(options, size="tiny"), view := RecordingView())
    assert FakeRunner.expected == {}
    monkeypatch.setattr(LocalTarget, "starts_warm", False)
    run_suite(replace(options, rerun=True), RecordingView())
    assert FakeRunner.expected["xxl"].start_s > warm_s + outside_steps().libraries_s
    assert not [line for line in view.lines if line.startswith("time on")]


def test_rows_that_share_a_gpu_are_announced_and_no_expected_times_are_shown(machine, tmp_path, monkeypatch):
    machine(H200, cpus=8)
    monkeypatch.setattr(gpus, "used_gib", lambda indices: dict.fromkeys(indices, 0.5))
    rows = ("baseline", "xxl", "xxl-lora")
    options = RunOptions(SUITE, rows=rows, results=tmp_path, card="h100_1g_12gb", size="full", share_gpus=True)
    expected: list[object] = []
    monkeypatch.setattr(RecordingView, "set_expected_times", lambda view, times: expected.append(times))
    folder = RunFolder(run_suite(options, view := RecordingView()).folder)
    announced = "up to 3 rows on a GPU at a time, each with the memory limit of h100_1g_12gb; times are not measured"
    assert announced in view.lines
    assert [
        line
        for line in view.lines
        if line.startswith("time on 1 GPU: ") and line.endswith("; these times are for one row at a time on a GPU")
    ]
    assert (FakeRunner.rows_per_gpu, FakeRunner.ran, expected) == (3, [*rows], [])
    assert folder.read_run().share_gpus
    assert folder.path.name.endswith("-shared")
    for other in (replace(options, share_gpus=False), replace(options, rows=("xxl",), results=tmp_path / "one")):
        expected.clear()
        run_suite(other, view := RecordingView())
        assert (FakeRunner.rows_per_gpu, len(expected)) == (1, 1)
        assert not [line for line in view.lines if "at a time" in line or "one row at a time" in line]


def test_rows_that_must_not_share_a_gpu_are_rejected_before_anything_is_written(machine, tmp_path, monkeypatch):
    monkeypatch.setattr(gpus, "used_gib", lambda indices: dict.fromkeys(indices, 0.5))
    options = RunOptions(SUITE, rows=("xxl", "xxl-sgd"), results=tmp_path, card="a100_80gb", share_gpus=True)
    machine(H200, cpus=8)
    with pytest.raises(InputError, match=r"xxl-sgd: other rows would disturb throughput, .*allowed: --row xxl, or"):
        run_suite(options, RecordingView())
    machine()
    with pytest.raises(InputError, match="no GPU; omit --share-gpus"):
        run_suite(replace(options, size="tiny"), RecordingView())
    assert not list(tmp_path.iterdir())
    assert FakeRunner.ran == []


def test_a_rejected_row_has_a_result_with_the_reason_and_the_others_run(machine, tmp_path):
    machine(sample_rows.GPU, host_memory_gib=100)
    done = run_suite(RunOptions(SUITE, rows=("xxl-cpu-offload", "xxl"), results=tmp_path), RecordingView())
    results = RunFolder(done.folder).results()
    assert results["xxl-cpu-offload"].outcome == "rejected"
    assert "of host memory, the host has 100 GiB" in results["xxl-cpu-offload"].reason
    assert FakeRunner.ran == ["xxl"]
    run_suite(RunOptions(SUITE, rows=("xxl-cpu-offload",), results=tmp_path, host_memory_gib=256), RecordingView())
    assert FakeRunner.ran == ["xxl", "xxl-cpu-offload"]


def test_a_run_with_only_rejected_rows_is_a_user_error(machine, tmp_path):
    machine(sample_rows.T4)
    with pytest.raises(InputError, match=r"^device NVIDIA T4 has 14\.6 GiB, a100_80gb needs 79\.2 GiB$"):
        run_suite(RunOptions(SUITE, size="full", results=tmp_path), RecordingView())
    results = RunFolder(tmp_path / f"{SUITE}-a100_80gb-full-verdict").results()
    assert {result.outcome for result in results.values()} == {"rejected"}
    assert FakeRunner.ran == []


def test_nothing_is_written_for_invalid_input(machine, tmp_path):
    with pytest.raises(InputError):
        run_suite(RunOptions(SUITE, rows=("nope",), results=tmp_path / "results"), View(None))
    assert not (tmp_path / "results").exists()


class FakeSlurmRunner(FakeRunner):
    """A FakeRunner for a cluster; it records the data to upload and the specs of the rows."""

    brought: ClassVar[list[Any]] = []

    def __init__(self, folder, *_, data, expected):
        super().__init__(folder, expected=expected)
        FakeSlurmRunner.brought = [data]

    def run(self, rows):
        super().run(rows)
        FakeSlurmRunner.brought += [row.spec for row in rows]


@pytest.fixture
def cluster(machine, monkeypatch, tmp_path):
    """Make runs use a cluster with this profile."""

    def use_profile(**profile) -> None:
        own = {"folder": str(tmp_path / "there"), "nodes": 2, **profile}
        cluster = Cluster(LocalShell(), profile_named("puhti").model_copy(update=own))
        monkeypatch.setattr(pipeline, "target_named", lambda *_, **__: ClusterTarget(cluster.profile.node, cluster))

    monkeypatch.setattr(targets, "SlurmRunner", FakeSlurmRunner)
    return use_profile


@pytest.fixture
def reviews(tmp_path):
    (folder := tmp_path / "reviews").mkdir()
    (folder / "train.jsonl").write_text('{"text": "good"}\n')
    return folder


def test_rows_that_run_on_a_cluster_have_the_path_of_the_data_on_the_cluster(cluster, reviews, tmp_path):
    cluster()
    run_suite(
        RunOptions(SLURM, data=str(reviews), size="tiny", rows=("neo-8gpu-ddp",), results=tmp_path), RecordingView()
    )
    data, spec = FakeSlurmRunner.brought
    assert (spec.data_sha256, data.user_path) == (folder_sha256(reviews), reviews)
    assert spec.data == f"{tmp_path}/there/cache/data/{spec.data_sha256}-imdb"


def test_data_of_the_user_is_rejected_for_several_nodes_without_a_shared_folder(cluster, reviews, tmp_path):
    cluster(shared_folder=False)
    with pytest.raises(InputError, match=r"^--data .*reviews: the nodes of Puhti share no folder; allowed: a URL$"):
        run_suite(RunOptions(SLURM, data=str(reviews), size="tiny", results=tmp_path), RecordingView())
