"""Parse the arguments of torchrun, accelerate launch and deepspeed into a program and the number of ranks.

Each launcher's own functions are called, so that the same arguments are allowed. torch must be loaded first.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from unittest.mock import patch

from yaml import YAMLError

from experiments.errors import InputError
from experiments.prediction.script.command import LaunchCommand, Launcher, Program, parse_command
from provision.words import number_with_noun

VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
COUNTED_AT_START = ("gpu", "auto")
"""Values of torchrun's --nproc-per-node that stand for the number of GPUs of the node."""


class GpusAndNodes(NamedTuple):
    """Number of GPUs per node, and number of nodes."""

    devices: int
    nodes: int

    @property
    def world_size(self) -> int:
        """The number of ranks."""
        return self.devices * self.nodes


class Launch(NamedTuple):
    """The program that a launcher starts, and its ranks.

    note: states the number of ranks if it is assumed, else "". passes_local_rank: whether the program gets the option
    --local_rank.
    """

    program: Program
    ranks: GpusAndNodes
    note: str = ""
    passes_local_rank: bool = False


def parse_launch(launch: LaunchCommand, rank: int = 0) -> Launch:
    """Return the program that a launcher starts as rank ``rank``, and the number of ranks.

    A launcher that counts the GPUs of the node finds those in CUDA_VISIBLE_DEVICES, or else one. Raises InputError for
    arguments that the launcher rejects.
    """
    try:
        found = PARSERS[launch.launcher](launch.arguments)
    except InputError:
        raise
    except SystemExit as end:
        raise InputError(f"{launch.launcher}: rejects its arguments, see above") from end
    except ImportError as error:
        raise InputError(f"{launch.launcher} is not installed ({error})") from error
    except (AssertionError, ValueError, OSError, YAMLError) as error:
        raise InputError(f"{launch.launcher}: {' '.join(str(error).split())}") from error
    if not found.passes_local_rank:
        return found
    option = f"--local_rank={rank % found.ranks.devices}"
    return found._replace(program=found.program._replace(arguments=(option, *found.program.arguments)))


def _parse_torchrun(arguments: Sequence[str]) -> Launch:
    from torch.distributed.run import get_args_parser

    options = get_args_parser().parse_args(arguments)
    nodes = _parse_count(str(options.nnodes).rpartition(":")[2], "--nnodes")
    if options.nproc_per_node in COUNTED_AT_START:
        devices, note = _gpus_of_node(), _assumption("torchrun", "--nproc-per-node")
    else:
        devices, note = _parse_count(options.nproc_per_node, "--nproc-per-node"), ""
    return Launch(
        _parse_program(options.module, options.training_script, options.training_script_args),
        GpusAndNodes(devices, nodes),
        note,
    )


class AccelerateLaunch(NamedTuple):
    """What accelerate starts: its completed options, the environment of the program, and the number of processes."""

    options: Any
    variables: Mapping[str, Any]
    processes: int


def _parse_accelerate(arguments: Sequence[str]) -> Launch:
    from accelerate.commands import launch

    parsed = launch.launch_command_parser().parse_args(arguments)
    has_config = parsed.config_file is not None or os.path.isfile(launch.default_config_file)
    is_assumed = parsed.num_processes is None and not has_config
    options, variables, processes = _prepare_by_accelerate(parsed)
    os.environ.update({name: str(value) for name, value in variables.items()})
    nodes = options.num_machines or 1
    note = _assumption("accelerate launch", "--num_processes") if is_assumed else ""
    return Launch(
        _parse_program(options.module, options.training_script, options.training_script_args),
        GpusAndNodes(max(1, processes // nodes), nodes),
        note,
    )


def _prepare_by_accelerate(parsed: Any) -> AccelerateLaunch:
    """Return what accelerate would start for parsed arguments, on a node with as many GPUs as processes."""
    import torch
    from accelerate.commands import launch
    from accelerate.utils import launch as environments

    launched: list[AccelerateLaunch] = []

    def start_by_deepspeed(options: Any) -> None:
        _, variables = environments.prepare_deepspeed_cmd_env(options)
        launched.append(AccelerateLaunch(options, variables, options.num_processes))

    def start_on_gpus(options: Any) -> None:
        launched.append(AccelerateLaunch(options, environments.prepare_multi_gpu_env(options), options.num_processes))

    def start_one(options: Any) -> None:
        _, variables = environments.prepare_simple_launcher_cmd_env(options)
        launched.append(AccelerateLaunch(options, variables, 1))

    def reject(*_: Any) -> None:
        raise InputError("accelerate launch: starts no training on GPUs; only trainings on GPUs can be predicted")

    gpus = parsed.num_processes or _gpus_of_node()
    with (
        patch.multiple(torch.cuda, is_available=lambda: True, device_count=lambda: gpus),
        patch.multiple(
            launch,
            deepspeed_launcher=start_by_deepspeed,
            multi_gpu_launcher=start_on_gpus,
            simple_launcher=start_one,
            tpu_launcher=reject,
            tpu_pod_launcher=reject,
            sagemaker_launcher=reject,
        ),
    ):
        launch.launch_command(parsed)
    return launched[0]


def _parse_deepspeed(arguments: Sequence[str]) -> Launch:
    from deepspeed.launcher import runner

    options = runner.parse_args(list(arguments))
    pool = runner.fetch_hostfile(options.hostfile) if os.path.isfile(options.hostfile) else None
    is_assumed = not pool and options.num_gpus < 1 and ":" not in options.include
    hosts = runner.parse_inclusion_exclusion(pool or _assumed_hosts(options), options.include, options.exclude)
    used = runner.apply_num_nodes_and_gpus(hosts, options.num_nodes, options.num_gpus)
    counts = {len(slots) for slots in used.values()}
    if len(counts) != 1:
        raise InputError(f"deepspeed: all nodes must have the same number of GPUs; this command uses {dict(used)}")
    program = _parse_program(options.module, options.user_script, options.user_args)
    note = _assumption("deepspeed", "--num_gpus") if is_assumed else ""
    return Launch(program, GpusAndNodes(counts.pop(), len(used)), note, passes_local_rank=not options.no_local_rank)


def _assumed_hosts(options: Any) -> dict[str, int]:
    """Return the hosts of a command of deepspeed without a host file, each with its number of GPUs."""
    from deepspeed.launcher.runner import parse_node_config_list

    if options.include:
        chosen = parse_node_config_list(options.include)
        return {host: max(slots, default=_gpus_of_node() - 1) + 1 for host, slots in chosen.items()}
    other_nodes = [f"node {number}" for number in range(1, options.num_nodes)]
    return dict.fromkeys(["localhost", *other_nodes], _gpus_of_node())


PARSERS: dict[Launcher, Callable[[Sequence[str]], Launch]] = {
    "torchrun": _parse_torchrun,
    "accelerate": _parse_accelerate,
    "deepspeed": _parse_deepspeed,
}


def _gpus_of_node() -> int:
    """Return the number of GPUs that a launcher counts."""
    return len(os.environ.get(VISIBLE_GPUS, "0").split(","))


def _assumption(launcher: str, option: str) -> str:
    """Return the note that a launcher starts a rank for each GPU that it counts."""
    gpus = _gpus_of_node()
    source = f" ({VISIBLE_GPUS})" if VISIBLE_GPUS in os.environ else ""
    assumed = number_with_noun(gpus, "GPU")
    return f"{launcher} starts a rank for each GPU of the node: {assumed} assumed{source}; {option} sets another number"


def _parse_program(is_module: bool, name: str, arguments: Sequence[str]) -> Program:
    """Return the program that a launcher starts: a module, or a file, which must exist."""
    if is_module:
        return Program("module", name, tuple(arguments))
    program = parse_command([name, *arguments])
    assert isinstance(program, Program)
    return program


def _parse_count(value: object, option: str) -> int:
    if not str(value).isdigit() or int(str(value)) < 1:
        raise InputError(f"{option} {value}: allowed: a whole number above 0; no GPUs or nodes can be counted here")
    return int(str(value))
