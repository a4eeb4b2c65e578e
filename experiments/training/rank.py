"""Run one rank of a row: build the model, train, measure, and write measured.json.

    python -m experiments.training.rank SPEC OUT

If the row has one rank, the worker starts this process. If the row has several ranks, a launcher starts this process,
with torchrun's environment variables.
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
from experiments.results.schema import (
    LOG_FILE,
    MEASURED_FILE,
    RANK_FOLDER,
    REJECTION_FILE,
    Device,
    Failure,
    Measured,
    Outcome,
)
from experiments.suites.row_spec import RowSpec
from experiments.system.files import write_atomically
from experiments.system.logs import error_message, location_of_error
from experiments.system.signals import exit_with_parent
from experiments.system.warm_process import without_garbage_collection
from experiments.training.device import open_device, process_gpus
from experiments.training.distributed.local_node import PID_FILE
from experiments.training.distributed.ranks import LAUNCHER_PID_VARIABLE
from experiments.training.failures import classify_error, describe_full_gpu, describe_outcome, requested_gib
from experiments.training.measure.meters import CudaMeter, Meter, StorageMeter
from experiments.training.measure.probe import Probe
from experiments.training.measure.step_profile import StepProfile


def run_rank(spec: RowSpec, out: Path, meter: Meter | None = None, device: Device | None = None) -> Measured:
    """Train the row on this process's device; return the measurements, even if the training fails.

    Imports only the engine of the row. By default, the function opens this machine's ``device``, and measures its
    memory with the ``meter`` for this kind of device. Raises InputError for a user error in data or weights, or if the
    device has less memory than the card.
    """
    start = time.perf_counter()
    device = device or open_device(spec)
    profile = StepProfile() if meter is None and device.kind == "cuda" and gpu_may_wait(spec) else None
    meter = meter or (CudaMeter(process_gpus(spec.settings)) if device.kind == "cuda" else StorageMeter())
    probe = Probe(spec, device, meter, out, profile)
    outcome: Outcome = "fits"
    failure = None
    try:
        with meter, closing(probe):
            with without_garbage_collection():
                engine = importlib.import_module(f"experiments.training.engines.{spec.settings.engine}")
            probe.begin_build()
            engine.train(spec, probe, out)
    except InputError:
        raise
    except Exception as error:
        traceback.print_exc()
        outcome, failure = classify_error(error), build_failure(error, probe)
    memory = probe.memory()
    if failure and outcome == "oom" and (message := describe_full_gpu(failure, memory, device)):
        outcome, failure = "error", failure.model_copy(update={"message": message})
    return Measured(
        rank=int(os.environ.get("RANK", 0)),
        outcome=outcome,
        reason=describe_outcome(outcome, failure, memory),
        failure=failure,
        device=device,
        memory=memory,
        speed=None if failure else probe.speed(),
        steps=None if failure else probe.steps(),
        losses=probe.losses(),
        parameters=probe.parameters or None,
        trainable_parameters=probe.trainable_parameters or None,
        weights_commit=probe.weights_commit,
        data_commit=probe.data_commit,
        resumed_at_step=probe.resumed_at_step,
        max_tokens=probe.max_tokens or None,
        gpu_s=time.perf_counter() - start if device.kind == "cuda" else None,
        timestamps=probe.timestamps(),
    )


def gpu_may_wait(spec: RowSpec) -> bool:
    """Return True if the GPU may wait for other ranks, or for an optimizer step on the CPU."""
    return spec.settings.ranks > 1 or spec.settings.offloads_by_deepspeed


def build_failure(error: Exception, probe: Probe) -> Failure:
    """Return a record of ``error`` with the phase and step of the training."""
    return Failure(
        phase=probe.phase,
        step=probe.step,
        rank=int(os.environ.get("RANK", 0)),
        micro_step=probe.micro_step,
        requested_gib=requested_gib(str(error)),
        kind=type(error).__name__,
        message=error_message(error),
        where=location_of_error(error),
    )


def hide_bitsandbytes() -> None:
    """Make imports of bitsandbytes fail in this process. peft would import it, which takes 3 s and opens all GPUs."""
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]


def main(spec_path: str, out: str) -> int:
    """Run the rank; return exit code 0 if the training succeeded, 3 if it failed, 2 for a user error."""
    spec = RowSpec.model_validate_json(Path(spec_path).read_bytes())
    folder = _set_up_launched_rank(Path(out)) if spec.settings.ranks > 1 else Path(out)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    if spec.weights == "random" and not spec.settings.uses_bitsandbytes:
        hide_bitsandbytes()
    try:
        measured = run_rank(spec, folder)
    except InputError as error:
        print(error, file=sys.stderr)
        write_atomically(folder / REJECTION_FILE, str(error))
        return 2
    write_atomically(folder / MEASURED_FILE, measured.model_dump_json())
    return 3 if measured.failure else 0


def _set_up_launched_rank(out: Path) -> Path:
    """Set up this process as one of several ranks; return the folder of the rank.

    From then on the process ends when its launcher ends, and writes its log into the folder. The function also writes
    the process id into the folder.
    """
    exit_with_parent(int(os.environ[LAUNCHER_PID_VARIABLE]))
    folder = out / RANK_FOLDER.format(os.environ["RANK"])
    (folder / PID_FILE).write_text(str(os.getpid()))
    with (folder / LOG_FILE).open("wb") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    return folder


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
