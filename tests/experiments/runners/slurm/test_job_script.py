"""The batch scripts of jobs: the resources that they request, and what they do. Fakes: Slurm's programs."""

import os
import re
import shlex
import subprocess
from importlib.util import find_spec

import pytest

from experiments.inputs.requirements import Artifact
from experiments.results.schema import CHECKPOINTS_FOLDER
from experiments.runners.slurm.cluster import Cluster
from experiments.runners.slurm.job_script import REQUIRE_FREE_GPUS, JobScripts, JobSpec
from experiments.runners.slurm.profile import profile_named
from provision.ssh.shell import LocalShell
from tests.support.runners import rows

WEIGHTS = Artifact(kind="weights", name="team/small")
DATA = Artifact(kind="data", name="https://data.test/set.tgz", sha256="ab", dataset="imdb")
ENVIRONMENTS = {"venv": "/opt/it's here", "apptainer": "/images/testbed.sif", "docker": "llm-testbed:current"}


def scripts(folder="", **changes) -> JobScripts:
    profile = profile_named("puhti").model_copy(update={"account": "project_1", **changes})
    cluster = Cluster(LocalShell(), profile)
    cluster.folder = folder
    return cluster.scripts


def script(spec=None, folder="", after=(), **changes) -> str:
    job = JobSpec(spec or rows.spec("a", time_limit_s=900), "abc", "some.worker", 120.0, after)
    return scripts(folder, **changes).row_script(job, "run", "run/lab/a", "llm-testbed print abc")


def options(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]


@pytest.mark.parametrize("runtime", ENVIRONMENTS)
def test_a_script_is_valid_bash_and_starts_the_same_row_in_every_runtime(runtime):
    text = script(runtime=runtime, environment=ENVIRONMENTS[runtime])
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    assert "-m experiments.runners.slurm.job /run /run/.jobs/a-abc/spec.json some.worker 120" in text
    assert "--privileged" not in text


def test_python_modules_that_scripts_start_exist():
    row = rows.spec("a", nodes=2, devices=2, strategy="ddp")
    texts = [
        script(row, nodes=2),
        scripts().staging_script(WEIGHTS, "x", "c"),
        scripts().staging_script(DATA, "x", "c"),
    ]
    modules = {module for text in texts for module in re.findall(r"python -m (experiments\.[\w.]+)", text)}
    assert len(modules) == 4
    assert [module for module in modules if find_spec(module) is None] == []


def test_an_apptainer_image_is_started_with_the_command_of_its_cluster():
    assert "apptainer exec --nv --bind" in script(runtime="apptainer", environment="/i.sif")
    on_lumi = script(runtime="apptainer", environment="/i.sif", apptainer=profile_named("lumi").apptainer)
    assert "singularity exec --rocm --bind" in on_lumi
    assert "--nv" not in on_lumi


def test_a_script_runs_setup_lines_then_loads_modules_then_activates_the_environment():
    text = script(environment="/env", setup=("module use /more",), modules=("pytorch",))
    steps = [text.index(step) for step in ("module use /more", "module load pytorch", ". /env/bin/activate")]
    assert steps == sorted(steps)


def test_modules_are_loaded_by_a_login_shell():
    assert script(modules=("pytorch",)).startswith("#!/bin/bash -l\n")
    assert script(modules=()).startswith("#!/bin/bash\n")


def test_a_job_checks_its_gpus_by_the_indices_that_they_have_inside_the_job(tmp_path):
    """Fake: an nvidia-smi that shows one GPU, as on a node where Slurm hides the others."""
    (tmp_path / "nvidia-smi").write_text('#!/bin/bash\n[ "$1" = --id=0 ] || echo "No devices were found"\n')
    (tmp_path / "nvidia-smi").chmod(0o755)
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_GPUS": "2", "CUDA_VISIBLE_DEVICES": "0"}
    subprocess.run(["bash", "-c", REQUIRE_FREE_GPUS], env=variables, check=True)


def test_a_job_whose_gpus_are_in_use_names_their_processes_and_has_an_exit_code_of_its_own(tmp_path):
    (tmp_path / "nvidia-smi").write_text("#!/bin/bash\necho 7, python, 9 MiB\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": "0"}
    done = subprocess.run(["bash", "-c", REQUIRE_FREE_GPUS], env=variables, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (75, "the row's GPUs are not free: 7, python, 9 MiB ")


def test_a_job_requests_what_the_row_needs_and_has_a_name_and_a_comment_that_identify_it():
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
    } <= set(options(script()))
    assert "--gres=gpu:v100:4" in options(script(rows.spec("a", devices=4, strategy="ddp")))


def test_a_row_of_two_nodes_is_one_job_on_two_nodes_if_the_profile_has_two():
    row = rows.spec("a", nodes=2, devices=4, strategy="ddp", time_limit_s=900)
    both, one = options(script(row, nodes=2)), options(script(row, nodes=1))
    assert {"--nodes=2", "--ntasks-per-node=1", "--gres=gpu:v100:4"} <= set(both)
    assert {"--nodes=1", "--ntasks-per-node=1", "--gres=gpu:v100:8"} <= set(one)
    assert "srun" not in script(row, nodes=1)


def test_a_job_of_two_nodes_has_a_container_on_each_node_and_these_reach_each_other(tmp_path):
    """Fakes: Slurm and Docker. The first container writes the ranks' address and waits until the second has ended."""
    folder, calls = tmp_path / "run/.jobs/a-abc", tmp_path / "calls"
    folder.mkdir(parents=True)
    fakes = {
        "scontrol": '[ "$2" = hostnames ] && printf "one\ntwo\n" || echo "NodeName=one NodeAddr=10.0.0.1 CPUs=8"',
        "srun": 'SLURM_NODEID=0 SLURMD_NODENAME=two SLURM_STEP_GPUS=6,7 exec bash -c "${@: -1}"',
        "docker": f"""
[ "$1" = image ] && echo sha256:1 && exit
echo "$SLURM_JOB_GPUS $TESTBED_ADDRESS $TESTBED_RENDEZVOUS $*" >> {calls}
case "$*" in *slurm.job*) echo "10.0.0.1 5 key" > rendezvous; until [ -e nodes.ended ]; do sleep 0.05; done; esac""",
    }
    for name, text in fakes.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    spec = rows.spec("a", nodes=2, devices=2, strategy="ddp", time_limit_s=900)
    text = script(spec, str(tmp_path), runtime="docker", environment="image", nodes=2, shared_folder=False, modules=())
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_GPUS": "0,1", "SLURM_CPUS_PER_TASK": "4", "SLURM_JOB_NODELIST": "one,two"}
    environment = {**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", text], env=environment, check=True, timeout=20)
    first, second = calls.read_text().splitlines()
    assert first.startswith("0,1 10.0.0.1  run --rm")
    assert second.startswith("6,7 10.0.0.1 10.0.0.1 5 key run --rm")
    assert second.endswith("python -m experiments.training.distributed.node_agent 1 two")
    assert [line.count("--network host") for line in (first, second)] == [1, 1]
    assert [line.count("--ipc=host") for line in (first, second)] == [1, 1]
    assert ("nvidia.com/gpu=7" in first, "nvidia.com/gpu=7" in second) == (False, True)
    assert (folder / "nodes.ended").read_text() == "0\n"


def test_all_nodes_except_the_first_start_an_agent_for_the_row():
    wide = rows.spec("a", nodes=3, devices=4, strategy="ddp", time_limit_s=900)
    text = script(wide, nodes=3)
    srun = "srun --nodes=2 --ntasks=2 --relative=1 --kill-on-bad-exit=1 --chdir=/ --cpus-per-task="
    assert srun in text
    clear = f'rm -rf "$row_folder/{CHECKPOINTS_FOLDER}"'
    assert clear not in text
    assert clear in script(wide, nodes=3, shared_folder=False)
    assert "srun" not in script(nodes=1)


@pytest.mark.parametrize(
    ("profile", "devices", "cpus", "memory"),
    [
        ({"cpus_per_node": 40, "gpus_per_node": 4, "memory_per_node_gib": 100}, 1, 10, 25600),
        ({"cpus_per_node": 40, "gpus_per_node": 4, "memory_per_node_gib": 100}, 3, 30, 76800),
        ({"cpus_per_node": 2, "gpus_per_node": 4, "memory_per_node_gib": 2}, 1, 1, 512),
        ({"cpus_per_node": 40, "gpus_per_node": 0, "memory_per_node_gib": 100}, 1, 2, 5120),
        ({"cpus_per_node": 3, "gpus_per_node": 0, "memory_per_node_gib": 100}, 1, 3, 102400),
        ({"cpus_per_node": 1, "gpus_per_node": 0, "memory_per_node_gib": 100}, 1, 1, 102400),
    ],
)
def test_a_row_has_its_share_of_the_cores_and_the_memory(profile, devices, cpus, memory):
    row = rows.spec("a", size="tiny", devices=devices, strategy="ddp" if devices > 1 else "auto")
    assert {f"--cpus-per-task={cpus}", f"--mem={memory}M"} <= set(options(script(row, **profile)))


def test_a_row_on_the_cpu_that_needs_more_than_a_node_has_requests_the_whole_node():
    on_cpu = {"task": "generate", "accelerator": "cpu", "precision": "32-true"}
    row = rows.spec(engine="hf_trainer", model="open-llama-13b", dataset="imdb", **on_cpu)
    requested = options(script(row, memory_per_node_gib=32, cpus_per_node=40))
    assert {"--mem=32768M", "--cpus-per-task=40"} <= set(requested)


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ({"cpus_per_node": 1, "memory_per_node_gib": 32}, {"--cpus-per-task=1", "--mem=8192M"}),
        ({"shared_folder": False, "nodes": 2}, {"--nodes=2"}),
        ({"shared_folder": True, "nodes": 2}, {"--nodes=1"}),
        ({"cpu_partition": None}, {"--partition=gpu"}),
    ],
)
def test_a_staging_job_runs_once_or_without_a_shared_folder_on_each_node(profile, expected):
    text = scripts("/shared", **profile).staging_script(WEIGHTS, "x", "c")
    assert expected <= set(options(text))
    assert ("srun --nodes=2 --ntasks=2" in text) == ("--nodes=2" in expected)


def test_a_row_on_the_cpu_uses_the_gpu_partition_if_the_profile_has_no_cpu_partition():
    on_cpu = {"task": "generate", "accelerator": "cpu", "engine": "hf_trainer", "model": "gpt-neo-1.3b"}
    assert "--partition=gpu" in options(script(rows.spec(**on_cpu), cpu_partition=None))
    assert not [option for option in options(script(account=None)) if option.startswith("--account")]


def test_a_row_on_the_cpu_requests_no_gpu_and_the_memory_of_its_model():
    on_cpu = {"task": "generate", "accelerator": "cpu", "precision": "32-true"}
    row = rows.spec(engine="hf_trainer", model="open-llama-13b", dataset="imdb", **on_cpu)
    requested = options(script(row))
    assert "--partition=small" in requested
    assert not [option for option in requested if option.startswith("--gres")]
    (memory,) = [option for option in requested if option.startswith("--mem=")]
    assert int(memory.removeprefix("--mem=").removesuffix("M")) >= 1.2 * 4 * 13.0e9 / 2**20


def test_no_gpu_is_requested_of_a_cluster_without_gpus():
    assert not [option for option in options(script(gpus_per_node=0)) if "gres" in option]


def test_a_container_has_the_gpus_of_its_job_and_ends_with_the_job():
    text = script(runtime="docker", environment="llm-testbed:current")
    assert '--device "nvidia.com/gpu=$gpu"' in text
    assert "trap 'docker rm --force" in text
    assert '--env TESTBED_IMAGE="$image"' in text


@pytest.mark.parametrize("runtime", ENVIRONMENTS)
def test_staged_files_are_found_by_rows_of_every_runtime(runtime):
    where = {"runtime": runtime, "environment": ENVIRONMENTS[runtime]}
    staging = scripts("/shared", **where).staging_script(WEIGHTS, "fetch/x", "c")
    for text in (staging, script(folder="/shared", **where)):
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
        assert "HF_HOME=/shared/cache/huggingface" in text
        assert "TESTBED_CACHE=/shared/cache" in text
    if runtime == "docker":
        assert "--volume /shared:/shared" in staging
    assert ("HF_HUB_OFFLINE=0" in staging, "HF_HUB_OFFLINE=1" in script(runtime=runtime)) == (True, True)


def test_a_staging_job_requests_no_gpu_and_has_a_time_limit():
    requested = options(scripts("/shared").staging_script(WEIGHTS, "fetch/x", "llm-testbed fetches"))
    assert {"--partition=small", "--nodes=1", "--cpus-per-task=2", "--mem=16384M", "--time=240"} <= set(requested)
    assert not [option for option in requested if "gpu" in option or "gres" in option]


def test_a_row_waits_for_its_staging_jobs_and_is_cancelled_if_one_of_them_fails():
    waits = {"--dependency=afterok:7:8", "--kill-on-invalid-dep=yes"}
    assert waits <= set(options(script(rows.spec("a"), "/shared", after=("7", "8"))))
    assert "dependency" not in script()


@pytest.mark.parametrize("run", ["my run", "$(touch x)", "a;b", "it's"])
def test_special_characters_in_the_name_of_a_run_are_quoted_in_the_script(run):
    job = JobSpec(rows.spec("a", time_limit_s=900), "abc", "some.worker", 120.0, ())
    (line,) = [
        line
        for line in scripts().row_script(job, run, "name", "comment").splitlines()
        if line.startswith("row_folder=")
    ]
    assert shlex.split(line) == [f"row_folder={scripts().layout.run_folder(run)}/{job.row_folder}"]


@pytest.mark.parametrize("limit_s", [901, 959, 960])
def test_the_time_limit_of_a_job_is_that_of_the_row_rounded_up_to_minutes(limit_s):
    job = JobSpec(rows.spec("a", time_limit_s=limit_s), "abc", "some.worker", 120.0, ())
    text = scripts().row_script(job, "run", "name", "comment")
    (minutes,) = [int(one.removeprefix("--time=")) for one in options(text) if one.startswith("--time=")]
    assert job.limit_s <= 60 * minutes < job.limit_s + 60
