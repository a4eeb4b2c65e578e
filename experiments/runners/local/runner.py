"""Run rows on this machine: as many at a time as its resources allow, each row in separate processes."""

import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from experiments.errors import InputError, Interrupted
from experiments.results.run_folder import RunFolder
from experiments.results.schema import (
    CHECKPOINTS_FOLDER,
    EARLIER_FOLDER,
    ERROR_OUTCOMES,
    RESULT_FILE,
    SHARED_GPU_VARIABLE,
    SPEC_FILE,
    START_LIMIT_S,
    Outcome,
    Result,
    read_progress,
    read_result,
)
from experiments.runners.failed_results import device_of, most_informative_line, write_failed_result
from experiments.runners.local import gpu_memory, row_process
from experiments.runners.local.resources import Allocation, ResourcePool, most_memory_first
from experiments.runners.local.sharing import max_row_gib
from experiments.runners.local.torch_extensions import compile_extensions, drop_stale_locks, extensions_folder
from experiments.runners.local.warm import WORKER_MODULE, WarmProcess, warm_processes
from experiments.runners.plan import PlannedRow
from experiments.runners.progress import RowState, View
from experiments.runners.remaining import ExpectedTime, RemainingTime
from experiments.suites.row_spec import RowSpec
from experiments.system.files import write_atomically
from experiments.system.warm_start import Process
from provision.hardware import gpus
from provision.models import Node
from provision.words import number_with_noun

GRACE_S = 120.0
POLL_INTERVAL_S = 0.1
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class NoFreeGpu(RuntimeError):
    """Rows are waiting, and no usable GPU is left."""


@dataclass(eq=False)
class RunningRow:
    """A running row. started: a value of time.monotonic.

    limit_from_s: when the row's time limit begins, in seconds after the row's start: at the first progress report, or
    at the latest after START_LIMIT_S.
    """

    spec: RowSpec
    folder: Path
    allocation: Allocation
    process: Process
    started: float
    limit_from_s: float = START_LIMIT_S

    @property
    def elapsed_s(self) -> float:
        """Return the time since the row started."""
        return time.monotonic() - self.started


class LocalRunner:
    """Runs rows on ``node`` and writes their results to ``folder``.

    host_memory_gib: host memory that the rows may use. worker: module that runs one row. grace_s: seconds from a row's
    time limit until it is killed. nodes: number of machines that a row's ranks run on; this machine is the first.
    rows_per_gpu: number of rows that share a GPU. expected: expected times of rows, by row.
    """

    def __init__(
        self,
        folder: RunFolder,
        node: Node,
        host_memory_gib: float,
        view: View,
        worker: str = WORKER_MODULE,
        grace_s: float = GRACE_S,
        nodes: int = 1,
        rows_per_gpu: int = 1,
        expected: Mapping[str, ExpectedTime] | None = None,
    ) -> None:
        run = folder.read_run()
        self._folder = folder
        self._command, self._card = run.command, run.card
        self._node = node
        self._view = view
        self._worker = worker
        self._grace_s = grace_s
        self._extensions = extensions_folder(node.processor)
        self._pool = ResourcePool(node, host_memory_gib, nodes, rows_per_gpu)
        self._running: list[RunningRow] = []
        self._remaining = RemainingTime(expected or {})
        self._warm: list[WarmProcess] = []

    def run(self, rows: Sequence[PlannedRow]) -> None:
        """Run the rows until each has a result.

        Raises Interrupted after SIGINT, SIGTERM or SIGHUP, and NoFreeGpu if no GPU becomes free. Before that, all
        processes of rows are killed.
        """
        with gpus.open_driver():
            self._run_until_done(rows)

    def _run_until_done(self, rows: Sequence[PlannedRow]) -> None:
        why = {row.row: row.why for row in rows}
        waiting = most_memory_first([row.spec for row in rows])
        for spec in waiting:
            self._end_processes(self._row_folder(spec))
        idle_gib = gpus.used_gib([gpu.index for gpu in self._node.gpus])
        with collect_stop_signals() as received, self._view.live(), self._prepare(waiting, lambda: received):
            try:
                while waiting or self._running:
                    waiting = [spec for spec in waiting if not self._start(spec, why[spec.row])]
                    if not self._running:
                        raise NoFreeGpu(f"no free GPU is left for {number_with_noun(len(waiting), 'row')}")
                    self._show_progress(len(rows), waiting)
                    time.sleep(POLL_INTERVAL_S)
                    if received:
                        raise Interrupted(signal.Signals(received[0]).name)
                    for row in self._rows_lost_with_warm_process():
                        waiting.append(self._reset(row, idle_gib))
                    for row in [row for row in self._running if self._has_ended_or_timed_out(row)]:
                        self._finish(row, idle_gib)
            finally:
                for row in self._running:
                    self._kill(row)

    @contextmanager
    def _prepare(self, specs: Sequence[RowSpec], stopped: Callable[[], object]) -> Iterator[None]:
        """Start the warm processes and compile extensions before rows run; end the warm processes afterwards."""
        with warm_processes(specs, self._worker, stopped) as self._warm:
            compile_extensions(specs, self._extensions, self._view.print_line, stopped)
            yield

    def _row_folder(self, spec: RowSpec) -> Path:
        return self._folder.row_folder(spec)

    def _start(self, spec: RowSpec, why: str) -> bool:
        """Start the row; return False if its resources are in use."""
        allocation = self._pool.allocate(spec)
        if allocation is None:
            return False
        folder = clear_row_folder(self._row_folder(spec))
        write_atomically(folder / SPEC_FILE, spec.model_dump_json(indent=2))
        drop_stale_locks(self._extensions)
        self._view.report_start(spec, why)
        process = self._launch(folder, allocation)
        self._running.append(RunningRow(spec, folder, allocation, process, time.monotonic()))
        return True

    def _launch(self, folder: Path, allocation: Allocation) -> Process:
        return row_process.start(folder, self._worker, self._environment(allocation))

    def _end_processes(self, folder: Path) -> list[int]:
        """Kill every process of the row; return the ids of those that cannot be killed."""
        return row_process.kill(folder)

    def _environment(self, allocation: Allocation) -> dict[str, str]:
        return {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": ",".join(str(gpu.index) for gpu in allocation.gpus),
            "OMP_NUM_THREADS": str(allocation.cores),
            "TORCH_EXTENSIONS_DIR": str(self._extensions),
            "TESTBED_COMMAND": self._command,
            **({SHARED_GPU_VARIABLE: "1"} if allocation.shared else {}),
            **{name: value for warm in self._warm for name, value in warm.environment.items()},
        }

    def _rows_lost_with_warm_process(self) -> list[RunningRow]:
        """Return the running rows that were killed because the warm process that forked them has ended.

        Warm processes that have ended are removed, with a message. If one of them had forked rows, every running row
        without a valid result counts as killed.
        """
        ended = {warm: why for warm in self._warm if (why := warm.last_line_if_ended()) is not None}
        self._warm = [warm for warm in self._warm if warm not in ended]
        for why in ended.values():
            self._view.print_line(f"rows start more slowly from now on: a warm process has ended ({why})")
        had_forked_rows = any(warm.ready for warm in ended)
        return [row for row in self._running if had_forked_rows and not _has_valid_result(row)]

    def _reset(self, row: RunningRow, idle_gib: dict[int, float]) -> RowSpec:
        """Kill a row and remove its result, so that it can start again; return its specification.

        idle_gib: memory in use on each GPU before any row ran.
        """
        (row.folder / RESULT_FILE).unlink(missing_ok=True)
        self._kill(row)
        self._running.remove(row)
        self._release_resources(row, [], idle_gib)
        return row.spec

    def _kill(self, row: RunningRow) -> None:
        """Kill the row's processes. If they write a result because they are killed, remove the result."""
        had_result = (row.folder / RESULT_FILE).exists()
        self._end_processes(row.folder)
        row.process.wait()
        if not had_result:
            (row.folder / RESULT_FILE).unlink(missing_ok=True)

    def _has_ended_or_timed_out(self, row: RunningRow) -> bool:
        limit_s = row.limit_from_s + row.spec.settings.time_limit_s + self._grace_s
        return row.process.poll() is not None or row.elapsed_s > limit_s

    def _finish(self, row: RunningRow, idle_gib: dict[int, float]) -> None:
        timed_out = row.process.poll() is None
        elapsed_s = row.elapsed_s
        had_result = (row.folder / RESULT_FILE).exists()
        alive = self._end_processes(row.folder)
        row.process.wait()
        if not had_result:
            (row.folder / RESULT_FILE).unlink(missing_ok=True)
        result = self._read_or_write_result(row, timed_out, elapsed_s)
        self._running.remove(row)
        self._remaining.add_ended(row.spec.row, elapsed_s, result)
        self._view.report_end(row.spec, result)
        self._release_resources(row, alive, idle_gib)

    def _release_resources(self, row: RunningRow, alive: Sequence[int], idle_gib: dict[int, float]) -> None:
        """Release the resources of a row that has ended, unless it left processes or memory in use.

        alive: ids of processes of the row that are still alive. idle_gib: memory in use on each GPU before any row ran,
        GiB. On a shared GPU, leftover memory of this row may look like memory of its neighbors, the rows on the same
        GPU. The leftover memory is detected now if the driver reports the memory of each process, or if more memory is
        in use than the neighbors may take. Otherwise it is detected when the last neighbor has ended.
        """
        idle_gib_of_row = {gpu.index: idle_gib[gpu.index] for gpu in row.allocation.gpus}
        used_gib = gpu_memory.gpus_still_in_use(idle_gib_of_row, self._neighbors_gib)
        if alive or used_gib:
            self._pool.withdraw(row.allocation)
            whose = f"{row.spec.row}, or a row that shared its GPU" if row.allocation.shared else row.spec.row
            self._view.print_warning(f"{whose}: later rows do not use its GPUs: {_describe_leftovers(alive, used_gib)}")
        else:
            self._pool.release(row.allocation)

    def _neighbors_gib(self, index: int) -> float:
        """Return the memory that running rows use on the GPU with this index, GiB."""
        rows = [row.folder for row in self._running if index in {gpu.index for gpu in row.allocation.gpus}]
        return gpu_memory.memory_of_rows(index, rows, max_row_gib(self._card))

    def _read_or_write_result(self, row: RunningRow, timed_out: bool, elapsed_s: float) -> Result:
        """Return the result that the row's worker wrote. If there is none, or it is invalid, write and return one."""
        outcome: Outcome = "timeout" if timed_out else "error"
        try:
            if (row.folder / RESULT_FILE).exists():
                result = read_result(row.folder / RESULT_FILE)
                (row.folder / row_process.NOTEBOOK_LOG).unlink(missing_ok=True)
                return result
            reason = (
                f"did not end within {elapsed_s:.0f} s; the time limit is {row.spec.settings.time_limit_s} s"
                if timed_out
                else f"ended without a result: {most_informative_line(row.folder)}"
            )
        except InputError as error:
            reason = str(error)
        device = device_of(self._node, row.allocation.gpus)
        return write_failed_result(row.folder, row.spec, device, outcome, reason, elapsed_s)

    def _show_progress(self, total: int, waiting: Sequence[RowSpec]) -> None:
        states = [_row_state(row) for row in self._running]
        for row, state in zip(self._running, states, strict=True):
            if state.progress:
                row.limit_from_s = min(row.limit_from_s, state.elapsed_s)
        left_s = self._remaining.estimate_s(states, waiting, self._pool.part_count, self._pool.size)
        self._view.show_rows(states, total - len(waiting) - len(states), total, left_s)


def _row_state(row: RunningRow) -> RowState:
    ending = (row.folder / RESULT_FILE).exists()
    return RowState(row.spec, row.elapsed_s, read_progress(row.folder), "ending" if ending else "")


def clear_row_folder(folder: Path) -> Path:
    """Remove an earlier run's files from the row's folder, except checkpoints of an interrupted run; return the folder.

    A run counts as interrupted if it has no result. An earlier result is first moved to the folder of earlier results,
    so that it is never mistaken for the result of the new run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    interrupted = not (folder / RESULT_FILE).exists()
    if not interrupted:
        (folder / EARLIER_FOLDER).mkdir(exist_ok=True)
        (folder / RESULT_FILE).rename(folder / EARLIER_FOLDER / f"{_time_as_file_name(folder / RESULT_FILE)}.json")
    for path in folder.iterdir():
        if path.name == EARLIER_FOLDER or (interrupted and path.name == CHECKPOINTS_FOLDER):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return folder


def _has_valid_result(row: RunningRow) -> bool:
    """Return whether the row has a result that is not an error."""
    try:
        return read_result(row.folder / RESULT_FILE).outcome not in ERROR_OUTCOMES
    except InputError:
        return False


def _describe_leftovers(alive: Sequence[int], used_gib: dict[int, float]) -> str:
    processes = [f"process {pid} cannot be killed" for pid in alive]
    memory = [f"{gib:.1f} GiB are still in use on GPU {index}" for index, gib in used_gib.items()]
    return ", ".join(processes + memory)


@contextmanager
def collect_stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP in the yielded list while the body runs; ignored signals stay ignored."""
    received: list[int] = []
    handled = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    handlers = {number: signal.signal(number, lambda number, frame: received.append(number)) for number in handled}
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _time_as_file_name(file: Path) -> str:
    """Return the time at which a file was written, as a file name that sorts by time: 20261128T014501.123456Z."""
    return datetime.fromtimestamp(file.stat().st_mtime, UTC).strftime("%Y%m%dT%H%M%S.%fZ")
