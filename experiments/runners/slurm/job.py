"""Run one row inside a Slurm job, with the local runner and the GPUs of the job.

python -m experiments.runners.slurm.job RUN_FOLDER SPEC WORKER GRACE_S NODES

NODES is the number of nodes of the job; this process is on the first of them.
"""

import sys
from pathlib import Path

from experiments.errors import Interrupted
from experiments.results.run_folder import RunFolder
from experiments.runners.admission import rejection_reason
from experiments.runners.failed_results import write_rejected_result
from experiments.runners.local.runner import LocalRunner, clear_row_folder
from experiments.runners.plan import PlannedRow
from experiments.runners.progress import View
from experiments.suites.row_spec import RowSpec
from experiments.system.terminal import SafeConsole
from provision.hardware.local import this_machine

STOPPED_EXIT_CODE = 130


def main(run_folder: str, spec_path: str, worker: str, grace_s: str, nodes: str) -> int:
    """Run the row; return 0 if it has a result, with any outcome, and 130 if the job was stopped.

    The row is checked again before it starts, because the job may have fewer resources than the cluster's profile
    states.
    """
    spec = RowSpec.model_validate_json(Path(spec_path).read_bytes())
    node = this_machine()
    view = View(SafeConsole(width=200))
    view.print_line(f"{spec.suite}/{spec.row} on {node.description}")
    folder, memory_gib = RunFolder(Path(run_folder)), node.host_memory_gib
    if why := rejection_reason(spec, node, memory_gib, nodes=int(nodes)):
        view.report_end(spec, write_rejected_result(clear_row_folder(folder.row_folder(spec)), spec, node, why))
        return 0
    runner = LocalRunner(folder, node, memory_gib, view, worker, float(grace_s), int(nodes))
    try:
        runner.run([PlannedRow(spec, True, "runs as a Slurm job")])
    except Interrupted as signal:
        view.print_warning(f"stopped by {signal}")
        return STOPPED_EXIT_CODE
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
