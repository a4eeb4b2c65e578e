"""The runner on this machine: as many rows side by side as there is room for, each in processes of its own."""

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from experiments.errors import InputError, Interrupted
from experiments.results.run_folder import RunFolder
from experiments.results.schema import (
    CHECKPOINTS_FOLDER,
    RESULT_FILE,
    SPEC_FILE,
    Outcome,
    Result,
    read_progress,
    read_result,
)
from experiments.runners.failed_results import last_line, write_broken
from experiments.runners.local import gpu_memory, row_process
from experiments.runners.local.resources import Slot, Slots, most_memory_first
from experiments.runners.local.torch_extensions import drop_stale_locks, kept_in
from experiments.runners.plan import Planned
from experiments.runners.progress import State, View
from experiments.suites.row_spec import RowSpec
from experiments.system.files import write_atomically
from provision.hardware import gpus
from provision.models import Node

WORKER = "experiments.training.worker"
GRACE_S = 120.0
TICK_S = 0.25


class NoRoomLeft(RuntimeError):
    """Rows are waiting, and no GPU is left that is free."""


@dataclass(frozen=True)
class Running:
    """A row under way. started is of time.monotonic, in seconds."""

    spec: RowSpec
    folder: Path
    slot: Slot
    process: subprocess.Popen[bytes]
    started: float

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started


class LocalRunner:
    """Runs rows on ``node`` into ``folder``.

    ``worker`` is the module that runs one row; a row is ended ``grace_s`` after its own time limit. ``nodes``: the
    machines that a row is spread over, this being the first.
    """

    def __init__(
        self,
        folder: RunFolder,
        node: Node,
        host_memory_gib: float,
        view: View,
        worker: str = WORKER,
        grace_s: float = GRACE_S,
        nodes: int = 1,
    ) -> None:
        self._folder = folder
        self._command = folder.read_run().command
        self._node = node
        self._view = view
        self._worker = worker
        self._grace_s = grace_s
        self._extensions = kept_in(node.processor)
        self._slots = Slots(node, host_memory_gib, nodes)
        self._running: list[Running] = []
        self._times_s: list[float] = []

    def run(self, rows: Sequence[Planned]) -> None:
        """Run the rows to their results, whatever those are.

        Raises Interrupted when told to stop and NoRoomLeft when no GPU becomes free; nothing is left running then.
        """
        why = {row.row: row.why for row in rows}
        waiting = most_memory_first([row.spec for row in rows])
        for spec in waiting:
            row_process.end(self._row_folder(spec))
        idle_gib = gpus.used_gib([gpu.index for gpu in self._node.gpus])
        with stop_signals() as told, self._view.alive():
            try:
                while waiting or self._running:
                    waiting = [spec for spec in waiting if not self._started(spec, why[spec.row])]
                    if not self._running:
                        raise NoRoomLeft(f"no GPU is left that is free: {len(waiting)} row(s) were not run")
                    self._show(len(rows), len(waiting))
                    time.sleep(TICK_S)
                    if told:
                        raise Interrupted(signal.Signals(told[0]).name)
                    for row in [row for row in self._running if self._over(row)]:
                        self._finish(row, idle_gib)
            finally:
                for row in self._running:
                    _abandon(row)

    def _row_folder(self, spec: RowSpec) -> Path:
        return self._folder.row(spec)

    def _started(self, spec: RowSpec, why: str) -> bool:
        slot = self._slots.take(spec)
        if slot is None:
            return False
        folder = emptied(self._row_folder(spec))
        write_atomically(folder / SPEC_FILE, spec.model_dump_json(indent=2))
        drop_stale_locks(self._extensions)
        self._view.starts(spec, why)
        started = row_process.start(folder, self._worker, self._environment(slot))
        self._running.append(Running(spec, folder, slot, started, time.monotonic()))
        return True

    def _environment(self, slot: Slot) -> dict[str, str]:
        return {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": ",".join(str(gpu.index) for gpu in slot.gpus),
            "OMP_NUM_THREADS": str(slot.cores),
            "TORCH_EXTENSIONS_DIR": str(self._extensions),
            "TESTBED_COMMAND": self._command,
        }

    def _over(self, row: Running) -> bool:
        return row.process.poll() is not None or row.elapsed_s > row.spec.settings.time_limit_s + self._grace_s

    def _finish(self, row: Running, idle_gib: dict[int, float]) -> None:
        late = row.process.poll() is None
        elapsed_s = row.elapsed_s
        had_result = (row.folder / RESULT_FILE).exists()
        left = row_process.end(row.folder)
        row.process.wait()
        if not had_result:
            (row.folder / RESULT_FILE).unlink(missing_ok=True)
        result = self._result(row, late, elapsed_s)
        self._running.remove(row)
        self._times_s.append(elapsed_s)
        self._view.ends(row.spec, result)
        held = gpu_memory.not_free({gpu.index: idle_gib[gpu.index] for gpu in row.slot.gpus})
        if left or held:
            self._slots.withdraw(row.slot)
            self._view.warns(f"{row.spec.row}: not used again: {_still_held(left, held)}")
        else:
            self._slots.give_back(row.slot)

    def _result(self, row: Running, late: bool, elapsed_s: float) -> Result:
        """The row's result: what its worker wrote, else what the runner saw."""
        outcome: Outcome = "timeout" if late else "error"
        try:
            if (row.folder / RESULT_FILE).exists():
                result = read_result(row.folder / RESULT_FILE)
                (row.folder / row_process.NOTEBOOK_LOG).unlink()
                return result
            reason = (
                f"no end after {elapsed_s:.0f} s; the time limit is {row.spec.settings.time_limit_s} s"
                if late
                else f"ended without a result: {last_line(row.folder)}"
            )
        except InputError as error:
            reason = str(error)
        return write_broken(row.folder, row.spec, self._node, row.slot.gpus, outcome, reason, elapsed_s)

    def _show(self, total: int, waiting: int) -> None:
        states = [State(row.spec, row.elapsed_s, read_progress(row.folder)) for row in self._running]
        self._view.shows(states, total - waiting - len(states), total, self._left_s(states, waiting))

    def _left_s(self, states: Sequence[State], waiting: int) -> float | None:
        """Time until the last row ends, by the mean time of those that have ended; None before the first."""
        if not self._times_s:
            return None
        mean_s = sum(self._times_s) / len(self._times_s)
        under_way_s = sum(max(0.0, mean_s - state.elapsed_s) for state in states)
        return (waiting * mean_s + under_way_s) / max(1, self._slots.count)


def emptied(folder: Path) -> Path:
    """The row's folder with nothing of an earlier run in it but the checkpoints of one that was cut off.

    A run with a result was not. The result goes first, so that none outlives its row.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cut_off = not (folder / RESULT_FILE).exists()
    (folder / RESULT_FILE).unlink(missing_ok=True)
    for path in folder.iterdir():
        if cut_off and path.name == CHECKPOINTS_FOLDER:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return folder


def _abandon(row: Running) -> None:
    """End the row's processes; a result that appears only because they were ended is none."""
    had_result = (row.folder / RESULT_FILE).exists()
    row_process.end(row.folder)
    row.process.wait()
    if not had_result:
        (row.folder / RESULT_FILE).unlink(missing_ok=True)


def _still_held(left: Sequence[int], held: dict[int, float]) -> str:
    processes = [f"process {pid} cannot be ended" for pid in left]
    memory = [f"GPU {index} still holds {gib:.1f} GiB" for index, gib in held.items()]
    return ", ".join(processes + memory)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that the number of a stopping signal is put into when one comes; nothing else happens at that moment."""
    told: list[int] = []
    stopping = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    heard = [number for number in stopping if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda number, frame: told.append(number)) for number in heard}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
