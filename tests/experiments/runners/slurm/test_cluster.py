"""Profiles, places and job scripts: what is pure of running rows on a cluster."""

import os
import subprocess
from types import SimpleNamespace

import pytest

from experiments.errors import InputError
from experiments.inputs.requirements import Need
from experiments.runners import targets
from experiments.runners.admission import too_small
from experiments.runners.slurm.cluster import FREE_GPUS, Cluster, JobSpec, code_archive
from experiments.runners.slurm.profile import CLUSTERS, Profile, profile_named
from experiments.runners.slurm.queue import Job, jobs_in
from experiments.runners.slurm.runner import by_claims_covered
from experiments.runners.targets import leased_profile, target_named
from experiments.suites.cards import cards
from experiments.suites.suite import suite_named
from provision.leasing.journal import Journal
from provision.ssh.shell import LocalShell
from tests.support import results
from tests.support import rows as made

NEED = Need(kind="weights", name="team/small")
WAYS = {"venv": "/opt/it's here", "apptainer": "/images/testbed.sif", "docker": "llm-testbed:current"}


def script(spec=None, folder="", **changes) -> str:
    profile = profile_named("puhti").model_copy(update={"account": "project_1", **changes})
    job_spec = JobSpec(spec or made.spec("a", time_limit_s=900), "abc", "some.worker", 120.0)
    cluster = Cluster(LocalShell(), profile)
    cluster.folder = folder
    return cluster.script(job_spec, "run", "run/lab/a", "llm-testbed print abc")


def told(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]


@pytest.mark.parametrize("name", sorted(file.stem for file in CLUSTERS.glob("*.yaml")))
def test_every_known_cluster_is_read_and_its_gpus_are_or_stand_in_for_a_card(name):
    profile = profile_named(name)
    assert profile.name == name
    assert not all(too_small(profile.node.gpus[0], card) for card in cards())


def test_an_unknown_profile_or_key_is_refused_with_what_is_allowed(tmp_path):
    with pytest.raises(
        InputError, match="--profile: unknown profile 'puthi'; allowed: lumi, mahti, puhti, roihu, a YAML file"
    ):
        profile_named("puthi")
    (tmp_path / "own.yaml").write_text("name: own\ntitle: Own\ncpus_per_node: 8\nmemory_per_node_gib: 8\npolls: 3\n")
    with pytest.raises(InputError, match=r"own\.yaml: unknown key 'polls'; allowed: account, apptainer, cpu_partition"):
        profile_named(str(tmp_path / "own.yaml"))


@pytest.mark.parametrize(
    ("site", "profile", "account", "says"),
    [
        ("slurm", None, None, "--site slurm: needs --profile"),
        ("slurm", "puhti", None, "jobs at Puhti need --account"),
        ("local", "puhti", None, "--profile puhti: allowed with --site slurm only"),
        (
            "chameleon",
            None,
            None,
            "no lease with a reachable machine; create one with `testbed lease`",
        ),
    ],
)
def test_a_place_that_is_not_described_is_refused_in_one_line(site, profile, account, says, tmp_path):
    with pytest.raises(InputError, match=says):
        target_named(site, profile, account, Journal(tmp_path))


@pytest.mark.parametrize("way", WAYS)
def test_a_script_is_valid_bash_and_starts_the_same_row_in_every_way(way):
    text = script(way=way, environment=WAYS[way])
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    assert "-m experiments.runners.slurm.job /run /run/.jobs/a-abc/spec.json some.worker 120" in text
    assert "--privileged" not in text


def test_an_apptainer_image_is_started_as_its_cluster_does():
    assert "apptainer exec --nv --bind" in script(way="apptainer", environment="/i.sif")
    on_lumi = script(way="apptainer", environment="/i.sif", apptainer=profile_named("lumi").apptainer)
    assert "singularity exec --rocm --bind" in on_lumi
    assert "--nv" not in on_lumi


def test_setup_comes_before_modules_and_these_before_the_environment():
    text = script(environment="/env", setup=("module use /more",), modules=("pytorch",))
    steps = [text.index(step) for step in ("module use /more", "module load pytorch", ". /env/bin/activate")]
    assert steps == sorted(steps)


def test_modules_are_loaded_by_a_shell_of_a_login():
    assert script(modules=("pytorch",)).startswith("#!/bin/bash -l\n")
    assert script(modules=()).startswith("#!/bin/bash\n")


def test_a_job_asks_for_its_gpus_by_the_numbers_that_they_have_for_it(tmp_path):
    """Stub: nvidia-smi, which has one GPU, as where Slurm hides the others of a node."""
    (tmp_path / "nvidia-smi").write_text('#!/bin/bash\n[ "$1" = --id=0 ] || echo "No devices were found"\n')
    (tmp_path / "nvidia-smi").chmod(0o755)
    own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_GPUS": "2", "CUDA_VISIBLE_DEVICES": "0"}
    subprocess.run(["bash", "-c", FREE_GPUS], env=own, check=True)


def test_slurm_is_told_what_the_row_needs_and_by_what_it_is_found():
    assert {
        "--job-name=run/lab/a",
        "--comment='llm-testbed print abc'",
        "--account=project_1",
        "--partition=gpu",
        "--gres=gpu:v100:1",
        "--cpus-per-task=10",
        "--mem=81920M",
        "--time=19",
        "--no-requeue",
    } <= set(told(script()))
    assert "--gres=gpu:v100:4" in told(script(made.spec("a", devices=4, strategy="ddp")))


def test_a_row_of_two_nodes_is_one_job_on_both_where_a_job_may_have_them():
    row = made.spec("a", nodes=2, devices=4, strategy="ddp", time_limit_s=900)
    both, one = told(script(row, nodes=2)), told(script(row, nodes=1))
    assert {"--nodes=2", "--ntasks-per-node=1", "--gres=gpu:v100:4"} <= set(both)
    assert {"--nodes=1", "--ntasks-per-node=1", "--gres=gpu:v100:8"} <= set(one)
    assert "srun" not in script(row, nodes=1)


def test_a_job_of_two_nodes_has_a_container_on_each_that_reach_each_other(tmp_path):
    """Fakes: Slurm and Docker. The first container says where it is met and waits until the second has ended."""
    folder, said = tmp_path / "run/.jobs/a-abc", tmp_path / "said"
    folder.mkdir(parents=True)
    stubs = {
        "scontrol": '[ "$2" = hostnames ] && printf "one\ntwo\n" || echo "NodeName=one NodeAddr=10.0.0.1 CPUs=8"',
        "srun": 'SLURM_NODEID=0 SLURMD_NODENAME=two SLURM_STEP_GPUS=6,7 exec bash -c "${@: -1}"',
        "docker": f"""
[ "$1" = image ] && echo sha256:1 && exit
echo "$SLURM_JOB_GPUS $TESTBED_ADDRESS $TESTBED_MEETING $*" >> {said}
case "$*" in *slurm.job*) echo "10.0.0.1 5 key" > meeting; until [ -e nodes.ended ]; do sleep 0.05; done; esac""",
    }
    for name, text in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    spec = made.spec("a", nodes=2, devices=2, strategy="ddp", time_limit_s=900)
    text = script(spec, str(tmp_path), way="docker", environment="image", nodes=2, shared=False, modules=())
    own = {"SLURM_JOB_ID": "7", "SLURM_JOB_GPUS": "0,1", "SLURM_CPUS_PER_TASK": "4", "SLURM_JOB_NODELIST": "one,two"}
    environment = {**os.environ, **own, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", text], env=environment, check=True, timeout=20)
    first, second = said.read_text().splitlines()
    assert first.startswith("0,1 10.0.0.1  run --rm")
    assert second.startswith("6,7 10.0.0.1 10.0.0.1 5 key run --rm")
    assert second.endswith("python -m experiments.training.distributed.node_agent 1 two")
    assert [line.count("--network host") for line in (first, second)] == [1, 1]
    assert [line.count("--ipc=host") for line in (first, second)] == [1, 1]
    assert ("nvidia.com/gpu=7" in first, "nvidia.com/gpu=7" in second) == (False, True)
    assert (folder / "nodes.ended").read_text() == "0\n"


def test_a_cluster_without_gpus_is_asked_for_none():
    assert not [option for option in told(script(gpus_per_node=0)) if "gres" in option]


def test_a_container_has_the_gpus_of_the_job_and_ends_with_it():
    text = script(way="docker", environment="llm-testbed:current")
    assert '--device "nvidia.com/gpu=$gpu"' in text
    assert "trap 'docker rm --force" in text
    assert '--env TESTBED_IMAGE="$image"' in text


@pytest.mark.parametrize("way", WAYS)
def test_what_is_fetched_is_where_rows_of_every_way_find_it(way):
    there = Cluster(LocalShell(), profile_named("puhti").model_copy(update={"way": way, "environment": WAYS[way]}))
    there.folder = "/shared"
    fetching = there.fetching(NEED, "fetch/x", "c")
    for text in (fetching, script(way=way, environment=WAYS[way], folder="/shared")):
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
        assert "HF_HOME=/shared/cache/huggingface" in text
        assert "TESTBED_CACHE=/shared/cache" in text
    if way == "docker":
        assert "--volume /shared:/shared" in fetching
    assert ("HF_HUB_OFFLINE=0" in fetching, "HF_HUB_OFFLINE=1" in script(way=way)) == (True, True)


def test_a_fetch_asks_for_no_gpu_and_has_a_time_limit():
    there = Cluster(LocalShell(), profile_named("puhti"))
    there.folder = "/shared"
    options = told(there.fetching(NEED, "fetch/x", "llm-testbed fetches"))
    assert {"--partition=small", "--nodes=1", "--cpus-per-task=2", "--mem=16384M", "--time=240"} <= set(options)
    assert not [option for option in options if "gpu" in option or "gres" in option]


def test_a_row_waits_for_its_fetches_and_is_cancelled_when_one_fails():
    job_spec = JobSpec(made.spec("a"), "abc", "some.worker", 120.0, after=("7", "8"))
    there = Cluster(LocalShell(), profile_named("puhti"))
    there.folder = "/shared"
    waits = {"--dependency=afterok:7:8", "--kill-on-invalid-dep=yes"}
    assert waits <= set(told(there.script(job_spec, "run", "run/lab/a", "c")))
    assert "dependency" not in script()


def test_a_leased_node_runs_rows_in_the_image_with_all_its_gpus():
    profile = leased_profile(made.node(made.GPU, made.GPU, cpus=64), 2)
    assert (profile.way, profile.environment, profile.partition) == ("docker", "llm-testbed:current", "gpu")
    assert (profile.gpus_per_node, profile.cpus_per_node) == (2, 64)
    assert (profile.nodes, profile.shared) == (2, False)


def test_a_leased_node_runs_rows_in_the_image_of_the_variant(monkeypatch, tmp_path):
    """Fakes: the machine of the lease, and what it says of itself."""
    machine = SimpleNamespace(login=SimpleNamespace(host="192.0.2.1"))
    held = SimpleNamespace(machines=(machine,), operations={})
    monkeypatch.setattr(targets, "_only_active_lease", lambda site, journal: held)
    monkeypatch.setattr(targets, "node_over", lambda shell: made.node(made.GPU))
    place = target_named("chameleon", None, None, Journal(tmp_path), "as-taught")
    assert place.cluster.profile.environment == "llm-testbed:as-taught"


def test_jobs_are_read_whatever_their_comments_say():
    text = "7|RUNNING|None|run/lab/a|llm-testbed x y\nslurm says something\n8|TIMEOUT|TimeLimit|b|a|b\n"
    assert jobs_in(text) == [
        Job("7", "RUNNING", "None", "run/lab/a", "llm-testbed x y"),
        Job("8", "TIMEOUT", "TimeLimit", "b", "a|b"),
    ]
    assert [job.over for job in jobs_in(text)] == [False, True]


def test_the_archive_of_the_code_is_the_same_bytes_each_time():
    assert code_archive() == code_archive()


def test_rows_that_most_statements_need_go_first():
    suite = suite_named("single_gpu_blip2")
    rows = made.to_run(
        *(results.run(suite="single_gpu_blip2").spec(suite, row) for row in ("baseline", "reduced-batch"))
    )
    assert [planned.row for planned in by_claims_covered(rows, suite)] == ["reduced-batch", "baseline"]


def test_a_node_of_a_profile_has_its_gpus():
    profile = Profile(name="x", title="X", cpus_per_node=8, memory_per_node_gib=32, gpu="NVIDIA T4", gpus_per_node=2)
    assert [gpu.index for gpu in profile.node.gpus] == [0, 1]
    assert profile.node.description == "X: 8 cores, 32 GiB of memory, 2 x NVIDIA T4 a node"
