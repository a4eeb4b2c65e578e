"""Run `testbed reproduce` at the local OpenStack cloud, with the image built from the cache.

python -m tests.testbed.chain.client KEY RESULTS [--keep] [--nodes N] [--gpus-per-node N] [--row ROW ...]
    [--end-when-idle TIME [--results-to USER@HOST:PATH --results-key FILE]]
"""

import argparse
import signal
import sys
from datetime import timedelta
from pathlib import Path

from rich.console import Console

from experiments.cli.parsing.end_when_idle import EndWhenIdleOptions
from experiments.cli.tables.verdicts import show_runs
from experiments.errors import InputError
from experiments.pipeline import options_per_suite
from experiments.reproduce import Reproduction, reproduce
from experiments.run_options import RunOptions
from experiments.runners.progress import view_on
from provision.clock import Clock
from provision.configure.build_context import PROJECT
from provision.configure.playbook import Setup
from provision.errors import ProvisionError
from provision.leasing.journal import Journal
from provision.leasing.reconciler import Reconciler
from provision.leasing.request import LeaseRequest
from provision.models import Requirements
from provision.sites.base import connect_to
from provision.ssh.login import key_pair
from tests.testbed.node import base_image, gpus
from tests.testbed.node.node import TEST_NODE_VARIABLES

SUITES = ("single_gpu_blip2", "slurm_hf_trainer")
ROWS = ("reduced-batch", "reduced-precision", "neo-1gpu", "neo-4gpu-ddp")
CARD, GPUS = "NVIDIA A100 80GB PCIe", 4
PINS = PROJECT / "containers" / "current.txt"
CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("key", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus-per-node", type=int)
    parser.add_argument("--row", action="append")
    parser.add_argument("--end-when-idle")
    parser.add_argument("--results-to")
    parser.add_argument("--results-key", type=Path)
    return parser.parse_args()


def main() -> int:
    asked = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console()
    view = view_on(console)
    options = RunOptions(
        suite=SUITES[0],
        rows=tuple(asked.row or ROWS),
        site="chameleon",
        size="tiny",
        results=asked.results,
        predict=False,
        gpus_per_node=asked.gpus_per_node,
        command="make rehearse",
    )
    spec = asked.key.with_name("cdi.json")
    spec.write_text(gpus.cdi_spec(GPUS))
    setup = Setup(
        base_image=base_image.NAME,
        base_image_archive=base_image.base_archive(view.print_line),
        wheels=base_image.wheels(PINS, view.print_line),
        ca_bundle=CA_BUNDLE,
        cdi_spec=spec,
        extra=TEST_NODE_VARIABLES,
    )
    requirements = Requirements(timedelta(hours=3), node_type="gpu_a100_pcie", gpus=GPUS, host_count=asked.nodes)
    end_when_idle = EndWhenIdleOptions(asked.end_when_idle, asked.results_to, asked.results_key).parse(asked.nodes)
    key = key_pair(asked.key)
    wanted = Reproduction(
        run_options=tuple(options_per_suite(SUITES, options)),
        lease_request=LeaseRequest(
            "llm_cc", "node-llm-cc", requirements, key, starts_now=True, end_when_idle=end_when_idle
        ),
        site=connect_to("chameleon"),
        setup=setup,
        keep=asked.keep,
    )
    done = show_runs(
        reproduce(wanted, Reconciler(Journal(), Clock(), view.print_line), view, lambda slot: None), console
    )
    return max(one.evaluation.exit_code for one in done)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (InputError, ProvisionError) as problem:
        sys.exit(f"testbed: {problem}")
