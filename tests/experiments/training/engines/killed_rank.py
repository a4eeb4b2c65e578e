"""Train a row with a checkpoint every EVERY steps, and kill the process after STEPS steps.

python -m tests.experiments.training.engines.killed_rank SPEC.json OUT EVERY STEPS
"""

import os
import signal
import sys
from pathlib import Path

from experiments.suites.row_spec import RowSpec
from experiments.training import rank
from experiments.training.engines import checkpoints
from experiments.training.measure.probe import Probe

spec_path, out, every, steps = sys.argv[1:]
checkpoints.SAVE_EVERY_STEPS = int(every)
after_batch = Probe.after_batch


def after_batch_and_die(probe: Probe) -> bool:
    may_end = after_batch(probe)
    if probe.step == int(steps):
        os.kill(os.getpid(), signal.SIGKILL)
    return may_end


Probe.after_batch = after_batch_and_die  # type: ignore[method-assign, assignment]
rank.run_rank(RowSpec.model_validate_json(Path(spec_path).read_bytes()), Path(out))
