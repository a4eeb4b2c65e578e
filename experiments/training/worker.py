"""Runs one row beside the GPU: one process group, one result.json, whatever happens to the trainer inside.

    python -m experiments.training.worker --spec SPEC.json --out ROW_FOLDER

Writes log.txt, telemetry.csv, progress.json while the row runs and result.json, last and at once. Exit code 0 when
result.json was written, whatever it says; 2 with one line for a user's mistake.
"""

import argparse
import os
import shlex
import shutil
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil
from pydantic import ValidationError

from experiments.errors import InputError
from experiments.results.provenance import code_sha256, git_commit, image, versions
from experiments.results.schema import (
    LOG_FILE,
    MEASURED_FILE,
    PROGRESS_FILE,
    RANK_FOLDER,
    RESULT_FILE,
    SPEC_FILE,
    TELEMETRY_FILE,
    Device,
    Failure,
    Measured,
    Memory,
    Outcome,
    Progress,
    Result,
    read_progress,
)
from experiments.suites.row_spec import RowSpec
from experiments.system.files import GIB, write_atomically
from experiments.training.distributed.local_node import prefer_oom_kill
from experiments.training.distributed.merge import NODE_LOST, first_failed, merged, slowest_progress
from experiments.training.distributed.ranks import CODES_FILE, Ranks
from experiments.training.failures import ending_of_text, reason_of, requested_gib
from experiments.training.measure.telemetry import Telemetry

LOG_TAIL_BYTES = 20_000
PEER_FAILURE_GRACE_S = 3.0


def run_row(spec: RowSpec, out: Path, command: str) -> Result:
    """Run the trainer to its end, or to the row's time limit, and write result.json.

    Raises InputError with what the trainer said when it refused its input; there is no result then.
    """
    started_at, begun = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    _remove_traces(out, RESULT_FILE)
    (out / SPEC_FILE).write_text(spec.model_dump_json(indent=2))
    kills_before = _oom_kills()
    with (out / LOG_FILE).open("wb") as log:
        ranks = Ranks(spec, out, log.fileno())
        with Telemetry(out / TELEMETRY_FILE, lambda: ranks.pids().values()) as telemetry:
            timed_out = _wait(ranks, out, spec.settings.time_limit_s, telemetry)
        ranks.end()
    found = _measured(ranks, spec, timed_out, oom_killed=_oom_kills() > kills_before)
    result = Result(
        **(merged(found) if ranks.count > 1 else found[0]).model_dump(),
        ranks=tuple(sorted(found, key=lambda measured: measured.rank)) if ranks.count > 1 else (),
        spec=spec,
        fingerprint=spec.fingerprint,
        code=code_sha256(),
        versions=versions(),
        git_commit=git_commit(),
        image=image(),
        command=command,
        started_at=started_at,
        elapsed_s=time.monotonic() - begun,
        telemetry=telemetry.summary(),
    )
    _remove_traces(out)
    write_atomically(out / RESULT_FILE, result.model_dump_json(indent=1))
    return result


def _remove_traces(out: Path, *names: str) -> None:
    """Remove what the trainer, or an earlier one, left for the worker to read, and ``names``."""
    for name in (*names, MEASURED_FILE, PROGRESS_FILE):
        (out / name).unlink(missing_ok=True)
    for path in out.glob(CODES_FILE.format("*")):
        path.unlink()
    for path in out.glob(RANK_FOLDER.format("*")):
        shutil.rmtree(path)


def _wait(ranks: Ranks, out: Path, limit_s: float, telemetry: Telemetry) -> bool:
    """Wait for the trainer and say what it does; True when it met the time limit and left its stacks.

    A rank that fails is waited for no longer than the others need to say that they failed too.
    """
    limit = time.monotonic() + limit_s
    failed = False
    said = None
    while not ranks.ended() and (time.monotonic() < limit or not failed):
        if time.monotonic() > limit:
            ranks.dump_stacks()
            return True
        if not failed and ranks.failed():
            failed, limit = True, time.monotonic() + PEER_FAILURE_GRACE_S
        if (progress := _progress(ranks, out)) and progress.micro_steps != said:
            said = progress.micro_steps
            telemetry.phase = progress.phase
            print(in_words(progress), flush=True)
        time.sleep(0.1)
    return False


def _progress(ranks: Ranks, out: Path) -> Progress | None:
    """Where the row is; of several ranks it is written to the row's folder, where people look for it."""
    if ranks.count == 1:
        return read_progress(out)
    there = [progress for rank in range(ranks.count) if (progress := read_progress(ranks.folder(rank)))]
    if not there:
        return None
    progress = slowest_progress(there)
    write_atomically(out / PROGRESS_FILE, progress.model_dump_json())
    return progress


def in_words(progress: Progress) -> str:
    """One line on where a row is."""
    memory = f"{progress.allocated_gib or 0:.3g} GiB now, {progress.memory.peak_gib or 0:.3g} GiB at the peak"
    left = "" if progress.left_s is None else f", {progress.left_s:.0f} s left at most"
    return f"micro-step {progress.micro_steps} of {progress.planned_micro_steps}: {memory}{left}"


def _measured(ranks: Ranks, spec: RowSpec, timed_out: bool, *, oom_killed: bool) -> list[Measured]:
    """What each rank wrote, or what can be said of it, in the order in which they ended.

    Raises InputError when a rank refused its input.
    """
    codes = ranks.codes()
    for rank, code in codes.items():
        if code == 2 and not timed_out:
            raise InputError(last_line(_tail(ranks.log(rank))))
    found = sorted(
        (
            _said(ranks, rank, timed_out) or _silent(ranks, rank, codes, spec, timed_out, oom_killed)
            for rank in range(ranks.count)
        ),
        key=lambda measured: ranks.ended_at(measured.rank),
    )
    failed = first_failed(found)
    return [_stopped(measured, failed) if failed and _was_stopped(measured, failed) else measured for measured in found]


def _said(ranks: Ranks, rank: int, timed_out: bool) -> Measured | None:
    """What a rank wrote; nothing of one that failed after the time limit, while the others were being ended."""
    measured = ranks.measured(rank)
    return None if timed_out and measured and measured.failure else measured


def _silent(
    ranks: Ranks, rank: int, codes: dict[int, int], spec: RowSpec, timed_out: bool, oom_killed: bool
) -> Measured:
    """What can be said of a rank that ended without a word; one without a code was ended by this process."""
    code = codes.get(rank, -signal.SIGTERM)
    progress = read_progress(ranks.folder(rank))
    memory = progress.memory if progress else Memory()
    lost = ranks.lost(rank)
    text = lost or _tail(ranks.log(rank))
    outcome: Outcome = "timeout" if timed_out else "host_oom" if oom_killed and code == -9 else ending_of_text(text)
    failure = Failure(
        phase=progress.phase if progress else "load",
        step=progress.step if progress else None,
        rank=rank,
        requested_gib=requested_gib(text),
        kind="timeout" if timed_out else NODE_LOST if lost else f"signal {-code}" if code < 0 else f"exit code {code}",
        message=last_line(text),
    )
    return Measured(
        rank=rank,
        outcome=outcome,
        reason=_reason(outcome, failure, memory, spec.settings.time_limit_s),
        failure=failure,
        device=progress.device if progress and progress.device else unknown_device(),
        memory=memory,
    )


def _was_stopped(measured: Measured, failed: Measured) -> bool:
    """True for a rank that was ended, by its launcher or by this process, because another one had failed."""
    return measured is not failed and measured.failure is not None and measured.failure.kind == "signal 15"


def _stopped(measured: Measured, failed: Measured) -> Measured:
    reason = f"ended, because rank {failed.rank} failed"
    return measured.model_copy(update={"outcome": failed.outcome, "reason": reason, "failure": None})


def _reason(outcome: Outcome, failure: Failure, memory: Memory, limit_s: int) -> str:
    if outcome == "timeout":
        return f"met its time limit of {limit_s} s, last seen in the {failure.phase} phase; the stacks are in the log"
    return reason_of(outcome, failure, memory, seen="last seen ")


def unknown_device() -> Device:
    """Stands where the trainer ended before it had looked at its device."""
    memory_gib = psutil.virtual_memory().total / GIB
    return Device(kind="cpu", name="not reached", host_cpus=os.cpu_count() or 1, host_memory_gib=memory_gib)


def _tail(path: Path) -> str:
    if not path.exists():
        return ""
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
        return log.read().decode(errors="replace")


def last_line(text: str) -> str:
    """The last line that says something."""
    return (text.strip().splitlines() or ["the trainer printed nothing"])[-1]


def _oom_kills() -> int:
    """How often the kernel has killed for want of memory so far (/proc/vmstat)."""
    with open("/proc/vmstat") as lines:
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def main() -> int:
    parser = argparse.ArgumentParser(prog="worker", description="Run one row beside the GPU.")
    parser.add_argument("--spec", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    prefer_oom_kill()
    try:
        spec = RowSpec.model_validate_json(options.spec.read_bytes())
    except (OSError, ValidationError) as error:
        print(f"{options.spec}: not a row's spec ({str(error).splitlines()[0]})", file=sys.stderr)
        return 2
    print(f"{spec.suite}/{spec.row} on {spec.card}, {spec.size}, {spec.length}", flush=True)
    try:
        result = run_row(spec, options.out, os.environ.get("TESTBED_COMMAND") or shlex.join(sys.orig_argv))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{result.outcome}: {result.reason}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
