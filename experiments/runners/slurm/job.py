"""One row as a job of a cluster: what runs a row on this machine runs it there, with the GPUs that the job was given.

python -m experiments.runners.slurm.job RUN_FOLDER SPEC WORKER GRACE_S NODES

NODES is how many the job has; this is the first of them, where further ones are met (training/away.py).
"""

import sys
from pathlib import Path

from rich.console import Console

from experiments.errors import Interrupted
from experiments.results.run_folder import RunFolder
from experiments.runners.admission import refusal
from experiments.runners.failed_results import write_refusal
from experiments.runners.local.runner import LocalRunner, emptied
from experiments.runners.plan import Planned
from experiments.runners.progress import View
from experiments.suites.row_spec import RowSpec
from provision.hardware import local

STOPPED = 130


def main(run_folder: str, spec_path: str, worker: str, grace_s: str, nodes: str) -> int:
    """0 when the row has a result, whatever it says: what the job was given may be less than the profile promised."""
    spec = RowSpec.model_validate_json(Path(spec_path).read_bytes())
    node = local.this_machine()
    view = View(Console(width=200))
    view.says(f"{spec.suite}/{spec.row} on {node.description}")
    folder, memory_gib = RunFolder(Path(run_folder)), node.host_memory_gib
    if why := refusal(spec, node, memory_gib, nodes=int(nodes)):
        view.ends(spec, write_refusal(emptied(folder.row(spec)), spec, node, why))
        return 0
    runner = LocalRunner(folder, node, memory_gib, view, worker, float(grace_s), int(nodes))
    try:
        runner.run([Planned(spec, True, "a job of its own")])
    except Interrupted as signal:
        view.warns(f"stopped by {signal}")
        return STOPPED
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
