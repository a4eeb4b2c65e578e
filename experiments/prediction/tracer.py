"""Trace rows: run their training code on the phantom device, which simulates a GPU and computes no values.

    python -m experiments.prediction.tracer --cache FOLDER --workers N < JOBS

Each line on standard input is a job, {"spec": FILE, "cards": NAMES, "out": FILE}. The predictions for the cards, or
{"error": LINE, "user_error": BOOL}, are written to ``out``. If the job has "keys": FILE, the keys of the operations of
a step are written to that file; a key is the JSON of an operation's name and arguments. If the job has "rank": N, this
rank of the row is traced, else the first. When a job ends, its number is printed; the first job has number 0. The row
is traced on the card of its specification; the other cards of the job must have the same kernels. Rows run in forks of
this process, at most N at a time and no more than fit into memory. So libraries are loaded once, and rows do not share
state.
"""

import argparse
import gc
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.errors import InputError
from experiments.prediction.peak import BATCH, UNLIMITED, MemoryTags, failure_in_replay, needed_bytes, parts_of_peak
from experiments.prediction.phantom.library import Phantom, Replay, load
from experiments.prediction.times.lag import set_clocks_of
from experiments.prediction.times.operations import MICRO_STEP
from experiments.prediction.times.record import PhaseRecorder
from experiments.prediction.times.step import needed_operations, step_time, table_for_card
from experiments.results.predictions import PeakParts, Prediction
from experiments.results.provenance import versions
from experiments.results.schema import Device, Measured, Phase
from experiments.suites.attention_kernels import kernel_properties
from experiments.suites.cards import card_named, cards
from experiments.suites.row_spec import RowSpec
from experiments.system.files import GIB, write_atomically
from experiments.system.signals import die_with_parent
from experiments.system.warm_process import without_garbage_collection
from provision.hardware.host_memory import processes_that_fit
from provision.temporary import TemporaryFolder

MAX_PROCESS_BYTES = 8 * GIB
"""Limit of the data memory of a process that traces a row (RLIMIT_DATA)."""
ASSUMED_PROCESS_BYTES = 6 * GIB
"""Memory that the trace of a row is assumed to need until the first trace has ended; all rows of the labs need less."""


class PhantomMeter:
    """Meter that reads the counters of the phantom device."""

    def __init__(self, phantom: Phantom) -> None:
        self._phantom = phantom
        self.tags = MemoryTags(phantom)
        self.recorder = PhaseRecorder(phantom)

    def allocated(self) -> int:
        return self._phantom.stats()[0]

    def peak(self) -> int:
        return self._phantom.stats()[2]

    def peak_reserved(self) -> int | None:
        return self._phantom.stats()[3]

    def begin(self, phase: Phase) -> None:
        self.tags.begin_phase(phase)
        self.recorder.begin_phase(phase)
        if phase == "forward":
            self._phantom.log_operation(json.dumps([MICRO_STEP]))
        self._phantom.reset_peaks()

    def track(self, kind: str, tensors: Iterable[Any]) -> None:
        tensors = list(tensors)
        self.tags.tag_tensors(kind, tensors)
        if kind == BATCH:
            self.recorder.record_batch(tensors)

    def __enter__(self) -> "PhantomMeter":
        return self

    def end_micro_step(self) -> None:
        self.recorder.end()

    def __exit__(self, *exc: Any) -> None:
        pass


def import_libraries(phantom: Phantom) -> None:
    """Import the libraries of all rows; they behave as on a machine with a GPU."""
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    from experiments.prediction.phantom.cuda import replace_cuda

    replace_cuda(phantom, next(iter(cards().values())))

    from experiments.prediction.phantom.fake_bitsandbytes import import_bitsandbytes

    import_bitsandbytes(phantom)

    from experiments.training.engines import lightning  # noqa: F401


def trace(
    spec: RowSpec, card_names: Sequence[str], phantom: Phantom, keys: Path | None = None, rank: int = 0
) -> list[Prediction]:
    """Run a rank of the row on the phantom device, in this process, and predict its memory and time on each card.

    A row on the CPU runs on the phantom device too, because its tensors have the same sizes.

    keys: file for the keys of the operations whose times determine the time of a step; None: the keys are not written.
    Raises InputError for a user error, RuntimeError if the training fails.
    """
    started_s = time.perf_counter()
    card = card_named(spec.card)
    phantom.install(kernel_properties(card))
    import torch

    from experiments.prediction.phantom.cpu_adam import skip_fused_adamw
    from experiments.prediction.phantom.cuda import replace_cuda
    from experiments.prediction.phantom.fake_deepspeed import replace_deepspeed_optimizers
    from experiments.prediction.phantom.gpus import simulate_gpus
    from experiments.prediction.phantom.host_work import log_steps_of_trainer
    from experiments.prediction.phantom.ranks import simulate_ranks
    from experiments.training.data.texts import batch_lengths
    from experiments.training.rank import run_rank

    torch.set_num_threads(1)
    replace_cuda(phantom, card)
    if spec.settings.uses_host_memory:
        phantom.count_host_memory()
        skip_fused_adamw(phantom.log_operation)
    if spec.settings.offloads_by_deepspeed:
        replace_deepspeed_optimizers(phantom.log_operation)
    if spec.settings.engine == "hf_trainer":
        log_steps_of_trainer(phantom)
    meter = PhantomMeter(phantom)
    device = Device(
        kind="cuda",
        name=card.name,
        memory_gib=card.memory_gib,
        cap_gib=UNLIMITED / GIB,
        host_cpus=os.cpu_count() or 1,
        host_memory_gib=0.0,
    )
    changed_settings = {"workers": 0, "accelerator": "gpu"}
    traced = spec.model_copy(update={"settings": spec.settings.model_copy(update=changed_settings)})
    with TemporaryFolder("row") as out:
        if spec.settings.task == "generate":
            simulate_ranks(1, 1, phantom, out / "ranks")
            simulate_gpus(phantom, spec.settings.devices)
        else:
            simulate_ranks(spec.settings.devices, spec.settings.nodes, phantom, out / "ranks", rank)
        measured = run_rank(traced, out, meter, device)
    if measured.failure:
        raise RuntimeError(measured.reason)
    recorded, lengths = meter.recorder.recorded_phases(), batch_lengths(spec)
    if keys:
        write_atomically(keys, "\n".join(needed_operations(recorded, spec.settings.accumulate)))
    planned = measured.speed.planned_micro_steps if measured.speed else 0
    elapsed_s = time.perf_counter() - started_s
    specs = [spec.model_copy(update={"card": name}) for name in card_names]
    compiled = spec.settings.compile  # traced without compilation: the memory is an upper bound, the time is unknown
    phases_for_clocks = recorded if phantom.released_in_use() else ()
    predictions = []
    for one in specs:
        set_clocks_of(one.card, phantom, phases_for_clocks)
        prediction = _build_prediction(one, measured, phantom, meter, elapsed_s)
        time_of_step = None if compiled else step_time(recorded, one, one.card, planned, lengths)
        predictions.append(prediction.model_copy(update={"rank": rank, "time": time_of_step}))
    return predictions if spec.settings.gpus else [*map(_remove_gpu_memory, predictions)]


def _build_prediction(
    spec: RowSpec, measured: Measured, phantom: Phantom, meter: PhantomMeter, elapsed_s: float
) -> Prediction:
    usable_bytes = round(card_named(spec.card).usable_gib * GIB)
    phantom.select_gpu(_fullest_gpu(phantom, spec))
    unlimited_replay, limited_replay = phantom.replay(UNLIMITED), phantom.replay(usable_bytes)
    phase, step, _ = meter.tags.position_at(unlimited_replay.peak_event)
    return Prediction(
        spec=spec,
        parameters=measured.parameters or 0,
        trainable_parameters=measured.trainable_parameters or 0,
        peak_gib=unlimited_replay.peak_allocated / GIB,
        reserved_gib=unlimited_replay.peak_reserved / GIB,
        at_peak=parts_of_peak(phantom, meter.tags, unlimited_replay),
        peak_phase=phase,
        peak_step=step,
        optimizer_cpu_gib=max((snapshot.optimizer_cpu_gib for snapshot in measured.memory.snapshots), default=0.0),
        host_gib=_host_gib(spec, phantom, unlimited_replay),
        needed_gib=needed_bytes(phantom, unlimited_replay) / GIB,
        usable_gib=usable_bytes / GIB,
        limited_reserved_gib=limited_replay.peak_reserved / GIB,
        retries=limited_replay.retries,
        failure=failure_in_replay(limited_replay, meter.tags),
        memory=measured.memory,
        tflop_per_sample=measured.speed.tflop_per_sample if measured.speed else None,
        versions=versions(),
        elapsed_s=elapsed_s,
    )


def _fullest_gpu(phantom: Phantom, spec: RowSpec) -> int:
    """Return the number of the process's GPU that needs the most memory; 0 if the process uses only one GPU."""
    if spec.settings.gpus_per_rank <= 1:
        return 0
    needs = []
    for gpu in range(spec.settings.gpus_per_rank):
        phantom.select_gpu(gpu)
        needs.append(needed_bytes(phantom, phantom.replay(UNLIMITED)))
    return needs.index(max(needs))


def _host_gib(spec: RowSpec, phantom: Phantom, unlimited_replay: Replay) -> float | None:
    """Return the host memory that a row with offload or on the CPU needs, GiB; None for other rows."""
    if spec.settings.accelerator == "cpu":
        return unlimited_replay.peak_allocated / GIB
    return phantom.host_peak() / GIB if spec.settings.uses_host_memory else None


def _remove_gpu_memory(prediction: Prediction) -> Prediction:
    """Return the prediction of a row on the CPU, which takes no memory of the card."""
    sizes = ("peak_gib", "reserved_gib", "needed_gib", "limited_reserved_gib")
    at_peak = PeakParts(**dict.fromkeys(PeakParts.model_fields, 0.0))
    return prediction.model_copy(
        update={**dict.fromkeys(sizes, 0.0), "at_peak": at_peak, "failure": None, "retries": 0}
    )


def _run_job(job: dict[str, Any], phantom: Phantom) -> None:
    """Trace the row of a job in this forked process and write the predictions, or the error, to its file."""
    die_with_parent()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_PROCESS_BYTES, MAX_PROCESS_BYTES))
    try:
        spec = RowSpec.model_validate_json(Path(job["spec"]).read_bytes())
        keys = Path(job["keys"]) if "keys" in job else None
        predictions = trace(spec, job["cards"], phantom, keys, job.get("rank", 0))
        output = json.dumps([one.model_dump(mode="json") for one in predictions])
    except InputError as error:
        output = json.dumps({"error": str(error), "user_error": True})
    except Exception as error:
        traceback.print_exc()
        output = json.dumps({"error": f"{type(error).__name__}: {error}", "user_error": False})
    write_atomically(Path(job["out"]), output)


def run_in_forks(jobs: Sequence[dict[str, Any]], run: Callable[[dict[str, Any]], None], workers: int) -> Iterator[int]:
    """Run each job in a fork of this process; yield the number of each job that has ended.

    At most ``workers`` jobs run at a time, and no more than fit into memory if each needs as much as the largest job so
    far.
    """
    running: dict[int, int] = {}
    waiting = list(enumerate(jobs))
    largest_yet_bytes = 0
    while waiting or running:
        each_bytes = largest_yet_bytes or ASSUMED_PROCESS_BYTES  # when a job starts, it has used none of this memory
        while waiting and len(running) < workers and len(running) < max(1, processes_that_fit(each_bytes)):
            number, job = waiting.pop(0)
            process = os.fork()
            if process == 0:
                run(job)
                os._exit(0)
            running[process] = number
        ended, _, usage = os.wait3(0)
        largest_yet_bytes = max(largest_yet_bytes, 1024 * usage.ru_maxrss)
        yield running.pop(ended)


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="trace", description="Trace rows on the phantom device, a simulated GPU.")
    parser.add_argument("--cache", required=True, type=Path)
    parser.add_argument("--workers", required=True, type=int)
    options = parser.parse_args()
    jobs = [json.loads(line) for line in sys.stdin]
    try:
        phantom = load(options.cache)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    with without_garbage_collection():
        import_libraries(phantom)
        for card in {card for job in jobs for card in job["cards"]}:
            table_for_card(card).prepare()

    gc.freeze()
    for number in run_in_forks(jobs, lambda job: _run_job(job, phantom), options.workers):
        print(number, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
