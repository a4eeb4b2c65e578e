"""One rank of a row: builds, trains, measures, and says how it ended in measured.json.

    python -m experiments.training.rank SPEC OUT

The worker starts it, of several ranks through their launcher, and then with torchrun's variables.
"""

import faulthandler
import importlib
import os
import signal
import sys
import time
import traceback
from contextlib import closing
from pathlib import Path

from experiments.errors import InputError
from experiments.results.schema import LOG_FILE, MEASURED_FILE, RANK_FOLDER, Device, Failure, Measured, Outcome
from experiments.suites.row_spec import RowSpec
from experiments.system.files import write_atomically
from experiments.system.processes import exit_with_parent
from experiments.training.device import open_device, own_gpus
from experiments.training.distributed.local_node import PID_FILE
from experiments.training.distributed.ranks import LAUNCHER
from experiments.training.failures import ending_of, first_line, reason_of, requested_gib
from experiments.training.measure.meters import CudaMeter, Meter, StorageMeter
from experiments.training.measure.probe import Probe
from experiments.training.measure.step_profile import StepProfile


def run(spec: RowSpec, out: Path, meter: Meter | None = None, device: Device | None = None) -> Measured:
    """Train the row on this process's device and measure it; a failure becomes part of what is returned.

    The module under engines/ that has the engine's name does the training. Only that one is imported.
    ``device`` and ``meter`` default to what the process finds.
    Raises InputError for what a person can mend: data, weights, a device smaller than the card.
    """
    begun = time.perf_counter()
    device = device or open_device(spec)
    profile = StepProfile() if meter is None and device.kind == "cuda" and waits_for_others(spec) else None
    meter = meter or (CudaMeter(own_gpus(spec.settings)) if device.kind == "cuda" else StorageMeter())
    probe = Probe(spec, device, meter, out, profile)
    probe.write_progress(now=True)
    outcome: Outcome = "fits"
    failure = None
    try:
        with meter, closing(probe):
            engine = importlib.import_module(f"experiments.training.engines.{spec.settings.engine}")
            engine.train(spec, probe, out)
    except InputError:
        raise
    except Exception as error:
        traceback.print_exc()
        outcome, failure = ending_of(error), failure_of(error, probe)
    memory = probe.memory()
    return Measured(
        rank=int(os.environ.get("RANK", 0)),
        outcome=outcome,
        reason=reason_of(outcome, failure, memory),
        failure=failure,
        device=device,
        memory=memory,
        speed=None if failure else probe.speed(),
        losses=probe.losses(),
        parameters=probe.parameters or None,
        trainable_parameters=probe.trainable_parameters or None,
        weights_commit=probe.weights_commit,
        data_commit=probe.data_commit,
        resumed_at_step=probe.resumed_at_step,
        max_tokens=probe.max_tokens or None,
        gpu_s=time.perf_counter() - begun if device.kind == "cuda" else None,
    )


def waits_for_others(spec: RowSpec) -> bool:
    """True when the GPU has others to wait for: other ranks, or the processor that steps its optimizer."""
    return spec.settings.ranks > 1 or "offload" in spec.settings.strategy


def failure_of(error: Exception, probe: Probe) -> Failure:
    """Where the probe stood when ``error`` was raised."""
    return Failure(
        phase=probe.phase,
        step=probe.step,
        rank=int(os.environ.get("RANK", 0)),
        micro_step=probe.micro_step,
        requested_gib=requested_gib(str(error)),
        kind=type(error).__name__,
        message=first_line(error),
    )


def main(spec_path: str, out: str) -> int:
    """Entry of the process; exit code 0 for a row that fits, 3 for one that failed, 2 for a user's mistake."""
    spec = RowSpec.model_validate_json(Path(spec_path).read_bytes())
    folder = _enter(Path(out)) if spec.settings.ranks > 1 else Path(out)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    try:
        measured = run(spec, folder)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    write_atomically(folder / MEASURED_FILE, measured.model_dump_json())
    return 3 if measured.failure else 0


def _enter(out: Path) -> Path:
    """Make this process one of several: it ends with its launcher, and has a folder of its own, with its own log."""
    exit_with_parent(int(os.environ[LAUNCHER]))
    folder = out / RANK_FOLDER.format(os.environ["RANK"])
    (folder / PID_FILE).write_text(str(os.getpid()))
    with (folder / LOG_FILE).open("wb") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    return folder


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
