"""What torchrun, accelerate launch and deepspeed start: the program and the number of ranks.

The launchers' own parsers read their arguments, so that what they allow is allowed here. torch must be loaded already.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from experiments.errors import InputError
from experiments.prediction.script.command import Launch, Launcher, Program, parsed


class Ranks(NamedTuple):
    """GPUs of a node, and nodes."""

    devices: int
    nodes: int

    @property
    def world(self) -> int:
        """The number of ranks."""
        return self.devices * self.nodes


def launched(launch: Launch) -> tuple[Program, Ranks]:
    """Return the program that a launcher starts and its ranks. Raises InputError for arguments that it refuses."""
    try:
        return READERS[launch.launcher](launch.arguments)
    except SystemExit as end:
        raise InputError(f"{launch.launcher}: its arguments are refused, see above") from end
    except ImportError as error:
        raise InputError(f"{launch.launcher} is not installed ({error})") from error


def _torchrun(arguments: Sequence[str]) -> tuple[Program, Ranks]:
    from torch.distributed.run import get_args_parser

    options = get_args_parser().parse_args(arguments)
    nodes = str(options.nnodes).rpartition(":")[2]
    return _program(options), Ranks(_count(options.nproc_per_node, "--nproc-per-node"), _count(nodes, "--nnodes"))


def _accelerate(arguments: Sequence[str]) -> tuple[Program, Ranks]:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils import launch

    given = launch_command_parser().parse_args(arguments)
    ways = (given.multi_gpu, given.cpu, given.use_deepspeed, given.use_fsdp, given.use_megatron_lm)
    given.multi_gpu = given.multi_gpu or ((given.num_processes or 1) > 1 and not any(ways))
    options, *_ = _validate_launch_command(given)
    if options.use_deepspeed:
        _, variables = launch.prepare_deepspeed_cmd_env(options)
    elif options.num_processes > 1:
        variables = launch.prepare_multi_gpu_env(options)
    else:
        _, variables = launch.prepare_simple_launcher_cmd_env(options)
    os.environ.update({name: str(value) for name, value in variables.items()})
    nodes = options.num_machines or 1
    return _program(options), Ranks(max(1, options.num_processes // nodes), nodes)


def _deepspeed(arguments: Sequence[str]) -> tuple[Program, Ranks]:
    from deepspeed.launcher.runner import parse_args

    options = parse_args(list(arguments))
    program = Program("module" if options.module else "file", options.user_script, tuple(options.user_args))
    devices = options.num_gpus if options.num_gpus > 0 else 1
    return program, Ranks(devices, max(1, options.num_nodes))


READERS: dict[Launcher, Callable[[Sequence[str]], tuple[Program, Ranks]]] = {
    "torchrun": _torchrun,
    "accelerate": _accelerate,
    "deepspeed": _deepspeed,
}


def _program(options: Any) -> Program:
    """Return the program of torchrun's and accelerate's options, which have the same names."""
    if options.module:
        return Program("module", options.training_script, tuple(options.training_script_args))
    program = parsed([options.training_script, *options.training_script_args])
    assert isinstance(program, Program)
    return program


def _count(value: object, option: str) -> int:
    if not str(value).isdigit() or int(str(value)) < 1:
        raise InputError(f"{option} {value}: a number of GPUs or nodes is needed, since none are here to be counted")
    return int(str(value))
