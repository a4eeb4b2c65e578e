"""One rank of a row: builds, trains, measures, and says how it ended in measured.json. The worker starts it."""

import faulthandler
import importlib
import signal
import sys
import time
import traceback
from contextlib import closing
from pathlib import Path

from experiments.errors import InputError
from experiments.recipe import RowSpec
from experiments.result import MEASURED_FILE, Device, Ending, Failure, Measured, write_atomically
from experiments.training.device import open_device
from experiments.training.ending import ending_of, first_line, reason_of, requested_gib
from experiments.training.memory import CudaMeter, Meter, StorageMeter
from experiments.training.probe import Probe


def run(spec: RowSpec, out: Path, meter: Meter | None = None, device: Device | None = None) -> Measured:
    """Train the row on this process's device and measure it; a failure becomes part of what is returned.

    The module under engines/ that has the engine's name does the training. Only that one is imported.
    ``device`` and ``meter`` default to what the process finds.
    Raises InputError for what a person can mend: data, weights, a device smaller than the card.
    """
    begun = time.perf_counter()
    device = device or open_device(spec)
    meter = meter or (CudaMeter() if device.kind == "cuda" else StorageMeter())
    probe = Probe(spec, device, meter, out)
    probe.write_progress(now=True)
    outcome: Ending = "fits"
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


def failure_of(error: Exception, probe: Probe) -> Failure:
    """Where the probe stood when ``error`` was raised."""
    return Failure(
        phase=probe.phase,
        step=probe.step,
        micro_step=probe.micro_step,
        requested_gib=requested_gib(str(error)),
        kind=type(error).__name__,
        message=first_line(error),
    )


def main(spec_path: str, out: str) -> int:
    """Entry of the process; exit code 0 when measured.json was written, 2 for a user's mistake."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    spec = RowSpec.model_validate_json(Path(spec_path).read_bytes())
    try:
        measured = run(spec, Path(out))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    write_atomically(Path(out) / MEASURED_FILE, measured.model_dump_json())
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
