"""Start the ranks of one node with torchrun or accelerate, and report their exit codes.

    python -m experiments.training.distributed.launcher NODE ADDRESS PORT RANK_MODULE SPEC OUT

RANK_MODULE is the module that each rank runs with the arguments SPEC OUT. The ranks of all nodes connect at
ADDRESS:PORT. If ranks fail, their exit codes are written to OUT/codes-NODE.json, by rank.
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
from experiments.system import warm_start
from experiments.system.files import write_atomically
from experiments.training.distributed.ranks import CODES_FILE, LAUNCHER_PID_VARIABLE


def torchrun_arguments(settings: Settings, node: str, address: str, port: str) -> list[str]:
    """Return torchrun's arguments for a node."""
    return [
        *("--nnodes", str(settings.nodes), "--nproc-per-node", str(settings.devices)),
        *("--node-rank", node, "--master-addr", address, "--master-port", port, "--module"),
    ]


def accelerate_arguments(settings: Settings, node: str, address: str, port: str) -> list[str]:
    """Return accelerate's arguments for a node. Precision and sharding are left out, because the engine sets them."""
    return [
        *("--multi_gpu", "--num_machines", str(settings.nodes), "--num_processes", str(settings.ranks)),
        *("--machine_rank", node, "--main_process_ip", address, "--main_process_port", port),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--module"),
    ]


def main(node: str, address: str, port: str, rank_module: str, spec_path: str, out: str) -> int:
    """Start the ranks of the node and wait until they end; return 0 if all of them succeeded, else 1."""
    os.environ[LAUNCHER_PID_VARIABLE] = str(os.getpid())
    settings = RowSpec.model_validate_json(Path(spec_path).read_bytes()).settings
    rank_command = [*warm_start.module_prefix(os.environ, warm_start.RANK_SOCKET_VARIABLE), rank_module, spec_path, out]
    try:
        if settings.launcher == "accelerate":
            arguments = accelerate_arguments(settings, node, address, port)
            launch_command(launch_command_parser().parse_args(arguments + rank_command))
        else:
            arguments = torchrun_arguments(settings, node, address, port)
            torchrun.run(torchrun.get_args_parser().parse_args(arguments + rank_command))
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        write_atomically(Path(out) / CODES_FILE.format(node), json.dumps(codes))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
