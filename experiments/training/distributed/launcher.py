"""Starts the ranks of one node with torchrun or accelerate, and says with which codes they ended.

    python -m experiments.training.distributed.launcher NODE ADDRESS PORT TRAINER SPEC OUT

TRAINER is the module that each rank runs with the arguments SPEC OUT. The first node's ranks meet the others at
ADDRESS:PORT. Unless all ranks end well, OUT gets codes-NODE.json: the exit codes of those that did not, by rank.
"""

import json
import os
import sys
from pathlib import Path

from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from experiments.suites.row_spec import RowSpec
from experiments.suites.settings import Settings
from experiments.system.files import write_atomically
from experiments.training.distributed.ranks import CODES_FILE, LAUNCHER


def torchrun_arguments(settings: Settings, node: str, address: str, port: str) -> list[str]:
    """What torchrun is told of a node."""
    return [
        *("--nnodes", str(settings.nodes), "--nproc-per-node", str(settings.devices)),
        *("--node-rank", node, "--master-addr", address, "--master-port", port, "--module"),
    ]


def accelerate_arguments(settings: Settings, node: str, address: str, port: str) -> list[str]:
    """The same for accelerate; precision and sharding are the trainer's own to set."""
    return [
        *("--multi_gpu", "--num_machines", str(settings.nodes), "--num_processes", str(settings.ranks)),
        *("--machine_rank", node, "--main_process_ip", address, "--main_process_port", port),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--module"),
    ]


def main(node: str, address: str, port: str, trainer: str, spec_path: str, out: str) -> int:
    """Entry of the process; exit code 0 when all ranks of the node ended well."""
    os.environ[LAUNCHER] = str(os.getpid())
    settings = RowSpec.model_validate_json(Path(spec_path).read_bytes()).settings
    started = [trainer, spec_path, out]
    try:
        if settings.launcher == "accelerate":
            arguments = accelerate_arguments(settings, node, address, port)
            launch_command(launch_command_parser().parse_args(arguments + started))
        else:
            arguments = torchrun_arguments(settings, node, address, port)
            torchrun.run(torchrun.get_args_parser().parse_args(arguments + started))
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        write_atomically(Path(out) / CODES_FILE.format(node), json.dumps(codes))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
