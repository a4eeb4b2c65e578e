"""Parse the arguments of torchrun, accelerate launch and deepspeed into a program and the number of ranks.

Each launcher's own parser is called, so that the same arguments are allowed. torch must be loaded first.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from experiments.errors import InputError
from experiments.prediction.script.command import LaunchCommand, Launcher, Program, parse_command


class GpusAndNodes(NamedTuple):
    """Number of GPUs per node, and number of nodes."""

    devices: int
    nodes: int

    @property
    def world_size(self) -> int:
        """The number of ranks."""
        return self.devices * self.nodes


def parse_launch(launch: LaunchCommand) -> tuple[Program, GpusAndNodes]:
    """Return the program that a launcher starts, with its number of GPUs per node and of nodes.

    Raises InputError for arguments that the launcher rejects.
    """
    try:
        return PARSERS[launch.launcher](launch.arguments)
    except SystemExit as end:
        raise InputError(f"{launch.launcher}: rejects its arguments, see above") from end
    except ImportError as error:
        raise InputError(f"{launch.launcher} is not installed ({error})") from error


def _parse_torchrun(arguments: Sequence[str]) -> tuple[Program, GpusAndNodes]:
    from torch.distributed.run import get_args_parser

    options = get_args_parser().parse_args(arguments)
    nodes = str(options.nnodes).rpartition(":")[2]
    return _parse_program(options), GpusAndNodes(
        _parse_count(options.nproc_per_node, "--nproc-per-node"), _parse_count(nodes, "--nnodes")
    )


def _parse_accelerate(arguments: Sequence[str]) -> tuple[Program, GpusAndNodes]:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils import launch

    parsed = launch_command_parser().parse_args(arguments)
    modes = (
        parsed.multi_gpu,
        parsed.cpu,
        parsed.use_deepspeed,
        parsed.use_fsdp,
        parsed.use_megatron_lm,
    )
    parsed.multi_gpu = parsed.multi_gpu or ((parsed.num_processes or 1) > 1 and not any(modes))
    options, *_ = _validate_launch_command(parsed)
    if options.use_deepspeed:
        _, variables = launch.prepare_deepspeed_cmd_env(options)
    elif options.num_processes > 1:
        variables = launch.prepare_multi_gpu_env(options)
    else:
        _, variables = launch.prepare_simple_launcher_cmd_env(options)
    os.environ.update({name: str(value) for name, value in variables.items()})
    nodes = options.num_machines or 1
    return _parse_program(options), GpusAndNodes(max(1, options.num_processes // nodes), nodes)


def _parse_deepspeed(arguments: Sequence[str]) -> tuple[Program, GpusAndNodes]:
    from deepspeed.launcher.runner import parse_args

    options = parse_args(list(arguments))
    program = Program("module" if options.module else "file", options.user_script, tuple(options.user_args))
    devices = options.num_gpus if options.num_gpus > 0 else 1
    return program, GpusAndNodes(devices, max(1, options.num_nodes))


PARSERS: dict[Launcher, Callable[[Sequence[str]], tuple[Program, GpusAndNodes]]] = {
    "torchrun": _parse_torchrun,
    "accelerate": _parse_accelerate,
    "deepspeed": _parse_deepspeed,
}


def _parse_program(options: Any) -> Program:
    """Return the program that torchrun or accelerate starts. Both parse it into options of the same names."""
    if options.module:
        return Program("module", options.training_script, tuple(options.training_script_args))
    program = parse_command([options.training_script, *options.training_script_args])
    assert isinstance(program, Program)
    return program


def _parse_count(value: object, option: str) -> int:
    if not str(value).isdigit() or int(str(value)) < 1:
        raise InputError(f"{option} {value}: not a number; a prediction cannot count GPUs or nodes, so give a number")
    return int(str(value))
