"""A rank that is killed: trains a row with a checkpoint every EVERY steps, and dies after STEPS of them.

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
checkpoints.EVERY_STEPS = int(every)
after_batch = Probe.after_batch


def dying(probe: Probe) -> bool:
    over = after_batch(probe)
    if probe.step == int(steps):
        os.kill(os.getpid(), signal.SIGKILL)
    return over


Probe.after_batch = dying  # type: ignore[method-assign]
rank.run(RowSpec.model_validate_json(Path(spec_path).read_bytes()), Path(out))
