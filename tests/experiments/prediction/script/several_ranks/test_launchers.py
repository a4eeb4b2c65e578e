"""Launchers: the program, the number of ranks, which is assumed if it is missing, and the environment."""

import os

import pytest

from experiments.errors import InputError
from experiments.prediction.script.command import LaunchCommand, Program, parse_command
from experiments.prediction.script.traced.launchers import Launch, parse_launch

CONFIG = """
compute_environment: LOCAL_MACHINE
distributed_type: DEEPSPEED
deepspeed_config: {zero_stage: 3, offload_optimizer_device: cpu}
mixed_precision: bf16
num_machines: 1
num_processes: 4
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Change to a folder with a script and configurations, and use an environment without settings of accelerate."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("")
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "hosts").write_text("a slots=4\nb slots=4\n")
    prefixes = ("ACCELERATE", "FSDP", "CUDA_VISIBLE")
    monkeypatch.setattr(os, "environ", {key: one for key, one in os.environ.items() if not key.startswith(prefixes)})


def parse(line: str, rank: int = 0) -> Launch:
    command = parse_command(line.split())
    assert isinstance(command, LaunchCommand)
    return parse_launch(command, rank)


@pytest.mark.parametrize(
    ("line", "ranks"),
    [
        ("torchrun --standalone --nproc_per_node=4 train.py a", (4, 1)),
        ("torchrun --nnodes 2 --nproc-per-node 8 train.py a", (8, 2)),
        ("accelerate launch --num_processes 2 --mixed_precision bf16 train.py a", (2, 1)),
        (
            "accelerate launch --num_processes 8 --num_machines 2 --machine_rank 0 --main_process_ip x train.py a",
            (4, 2),
        ),
        ("accelerate launch --use_fsdp --num_processes 4 train.py a", (4, 1)),
        ("accelerate launch --use_deepspeed --zero_stage 2 --num_processes 4 train.py a", (4, 1)),
        ("accelerate launch --config_file config.yaml train.py a", (4, 1)),
        ("deepspeed --no_local_rank --num_gpus 2 train.py a", (2, 1)),
        ("deepspeed --no_local_rank --num_gpus 2 --num_nodes 3 train.py a", (2, 3)),
        ("deepspeed --no_local_rank --include localhost:1,3 train.py a", (2, 1)),
        ("deepspeed --no_local_rank --hostfile hosts train.py a", (4, 2)),
        ("deepspeed --no_local_rank --hostfile hosts --include b:0,1 train.py a", (2, 1)),
    ],
)
def test_the_command_line_of_a_launcher_is_parsed_by_the_launcher_s_own_parser(line, ranks):
    program, found, note, _ = parse(line)
    assert (program, tuple(found), note) == (Program("file", "train.py", ("a",)), ranks, "")


def test_accelerate_prepares_the_environment_of_deepspeed():
    parse("accelerate launch --use_deepspeed --zero_stage 2 --num_processes 2 train.py")
    assert os.environ["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert os.environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "2"
    assert os.environ["ACCELERATE_CONFIG_DS_FIELDS"] == ""
    parse("accelerate launch --config_file config.yaml train.py")
    assert os.environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "3"
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert os.environ["ACCELERATE_CONFIG_DS_FIELDS"] == "zero_stage,offload_optimizer_device,mixed_precision"


def test_deepspeed_passes_the_number_of_a_rank_on_its_node():
    assert parse("deepspeed --num_gpus 2 --num_nodes 2 train.py a", rank=3).program.arguments == ("--local_rank=1", "a")


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("torchrun --nproc-per-node gpu train.py", "--nproc-per-node"),
        ("torchrun --nproc-per-node auto train.py", "--nproc-per-node"),
        ("accelerate launch train.py", "--num_processes"),
        ("deepspeed train.py", "--num_gpus"),
    ],
)
def test_a_launcher_that_counts_gpus_finds_one_or_those_that_are_visible_and_a_note_says_so(line, option, monkeypatch):
    launch = parse(line)
    assert launch.ranks == (1, 1)
    assert f"a rank for each GPU of the node: 1 GPU assumed; {option} sets another number" in launch.note
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "2,3")
    launch = parse(line)
    assert launch.ranks == (2, 1)
    assert "2 GPUs assumed (CUDA_VISIBLE_DEVICES)" in launch.note


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("torchrun --nproc-per-node cpu train.py", "--nproc-per-node cpu: allowed: a whole number above 0"),
        ("torchrun --nproc-per-node 0 train.py", "--nproc-per-node 0: allowed: a whole number above 0"),
        (
            "accelerate launch --multi_gpu --num_processes 1 train.py",
            "accelerate: You need to use at least 2",
        ),
        ("accelerate launch --num_machines 2 train.py", "accelerate: When using multiple machines, you need to"),
        ("accelerate launch --tpu --num_processes 1 train.py", "accelerate launch: starts no training on GPUs"),
        ("deepspeed --num_gpus 2 nowhere.py", "nowhere.py: no such file or command"),
        ("deepspeed --hostfile hosts --include c:1 train.py", "deepspeed: Hostname 'c' not found in hostfile"),
        ("deepspeed --hostfile hosts --exclude b:1 train.py", "deepspeed: all nodes must have the same number of GPUs"),
    ],
)
def test_arguments_that_a_launcher_rejects_are_an_error_in_one_line(line, message):
    with pytest.raises(InputError) as caught:
        parse(line)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [None, "distributed_type: [\n"])
def test_a_configuration_file_that_cannot_be_read_is_an_error_of_the_command(tmp_path, text):
    if text:
        (tmp_path / "broken.yaml").write_text(text)
    with pytest.raises(InputError, match=r"^accelerate: .*broken\.yaml"):
        parse("accelerate launch --config_file broken.yaml train.py")
