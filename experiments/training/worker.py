"""Run one row, an experiment of a lab, on this machine and write result.json, even if the training fails.

    python -m experiments.training.worker --spec SPEC.json --out ROW_FOLDER

While the row runs, the worker writes log.txt, telemetry.csv and progress.json; at the end it writes result.json
atomically. The exit code is 0 if result.json was written, for every outcome. The exit code is 2 for a user error, with
one line on stderr.
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
    CHECKPOINTS_FOLDER,
    ERROR_OUTCOMES,
    LOG_FILE,
    MEASURED_FILE,
    PROGRESS_FILE,
    RANK_FOLDER,
    REJECTION_FILE,
    RESULT_FILE,
    SPEC_FILE,
    START_LIMIT_S,
    TELEMETRY_FILE,
    Device,
    Failure,
    Measured,
    Memory,
    Outcome,
    Progress,
    Result,
    StageTimes,
    StageTimestamps,
    read_progress,
)
from experiments.results.wording import format_size
from experiments.suites.row_spec import RowSpec
from experiments.system.files import GIB, write_atomically
from experiments.system.logs import describe_signal, error_line, last_lines, location_in_log
from experiments.training.distributed.local_node import prefer_oom_kill
from experiments.training.distributed.merge import LOST_NODE_KIND, merge_ranks, root_failure, slowest_progress
from experiments.training.distributed.ranks import CODES_FILE, Ranks
from experiments.training.failures import classify_text, describe_outcome, requested_gib
from experiments.training.measure.telemetry import TelemetrySampler

LOG_TAIL_BYTES = 20_000
NO_OUTPUT = "the training process printed nothing"
PEER_FAILURE_GRACE_S = 3.0
"""Time in which other ranks can report their failures after one rank has failed."""


def run_row(spec: RowSpec, out: Path, command: str) -> Result:
    """Train the row until it ends or reaches its time limit; write and return its result.

    If a rank rejected its input, raises InputError with the rank's message, and writes no result.
    """
    started_at, start_s = time.time(), time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    _remove_intermediate_files(out, RESULT_FILE)
    (out / SPEC_FILE).write_text(spec.model_dump_json(indent=2))
    kills_before = _count_oom_kills()
    with (out / LOG_FILE).open("wb") as log:
        ranks = Ranks(spec, out, log.fileno())
        with TelemetrySampler(out / TELEMETRY_FILE, lambda: ranks.pids().values(), start_s) as telemetry:
            timeout_reason = _wait_for_ranks(ranks, out, spec.settings.time_limit_s, telemetry)
        ranks.end()
    shutil.rmtree(out / CHECKPOINTS_FOLDER, ignore_errors=True)
    measurements = _collect_measurements(ranks, timeout_reason, oom_killed=_count_oom_kills() > kills_before)
    row = _add_log_lines(merge_ranks(measurements) if ranks.count > 1 else measurements[0], ranks)
    elapsed_s = time.monotonic() - start_s
    steady_s = steady_interval_s(row.timestamps, started_at) if row.timestamps else None
    result = Result(
        **row.model_dump(),
        ranks=tuple(sorted(measurements, key=lambda measured: measured.rank)) if ranks.count > 1 else (),
        spec=spec,
        fingerprint=spec.fingerprint,
        code=code_sha256(),
        versions=versions(),
        git_commit=git_commit(),
        image=image(),
        command=command,
        started_at=datetime.fromtimestamp(started_at, UTC).isoformat(timespec="seconds"),
        elapsed_s=elapsed_s,
        times=stage_times(row.timestamps, started_at, elapsed_s) if row.timestamps else None,
        steady_interval_s=steady_s,
        telemetry=telemetry.summary(row.speed, steady_s),
    )
    _remove_intermediate_files(out)
    write_atomically(out / RESULT_FILE, result.model_dump_json(indent=1))
    return result


def _add_log_lines(row: Measured, ranks: Ranks) -> Measured:
    """Return the row's measurements; after an error, add the last log lines of the failed rank to them."""
    if row.failure is None or row.outcome not in ERROR_OUTCOMES:
        return row
    log = last_lines(_read_log_end(ranks.log_path(row.failure.rank)))
    return row.model_copy(update={"failure": row.failure.model_copy(update={"log": log})})


def _remove_intermediate_files(out: Path, *names: str) -> None:
    """Remove the files that ranks write for the worker, and the files with the names in ``names``."""
    for name in (*names, MEASURED_FILE, PROGRESS_FILE, REJECTION_FILE):
        (out / name).unlink(missing_ok=True)
    for path in out.glob(CODES_FILE.format("*")):
        path.unlink()
    for path in out.glob(RANK_FOLDER.format("*")):
        shutil.rmtree(path)


def stage_times(timestamps: StageTimestamps, row_started_at: float, elapsed_s: float) -> StageTimes:
    """Return the durations of a row's stages.

    row_started_at: the row's start in seconds since 1970. elapsed_s: seconds from the row's start to its end. If the
    system clock was set back during a stage, the duration of the stage is 0 instead of negative.
    """
    return StageTimes(
        start_s=max(0.0, timestamps.started_at - row_started_at),
        build_s=max(0.0, timestamps.began_at - timestamps.started_at),
        train_s=max(0.0, timestamps.ended_at - timestamps.began_at),
        end_s=max(0.0, row_started_at + elapsed_s - timestamps.ended_at),
    )


def steady_interval_s(timestamps: StageTimestamps, row_started_at: float) -> tuple[float, float] | None:
    """Return when the steps after the warm-up began and ended, in seconds from the row's start; None if none ran."""
    if timestamps.steady_from is None or timestamps.steady_until is None:
        return None
    return timestamps.steady_from - row_started_at, timestamps.steady_until - row_started_at


def _wait_for_ranks(ranks: Ranks, out: Path, limit_s: float, telemetry: TelemetrySampler) -> str:
    """Wait until the ranks end, and print their progress. Return the time limit that they exceeded, in words, or ''.

    The time limit begins when a rank has started and completed its imports. At the limit, the ranks write the stacks of
    their threads into their logs. After one rank has failed, the others get PEER_FAILURE_GRACE_S to report failures.
    """
    deadline, timeout_reason = time.monotonic() + START_LIMIT_S, f"did not start within {START_LIMIT_S:.0f} s"
    failed = started = False
    printed_micro_steps = None
    while not ranks.all_ended() and (time.monotonic() < deadline or not failed):
        if time.monotonic() > deadline:
            ranks.dump_stacks()
            return timeout_reason
        if not failed and ranks.any_failed():
            failed, deadline = True, time.monotonic() + PEER_FAILURE_GRACE_S
        progress = _read_row_progress(ranks, out)
        if progress and not started and not failed:
            started, deadline = True, time.monotonic() + limit_s
            timeout_reason = f"reached its time limit of {limit_s:g} s"
        if progress:
            telemetry.phase = progress.phase
        if progress and progress.micro_steps != printed_micro_steps:
            printed_micro_steps = progress.micro_steps
            print(progress_line(progress), flush=True)
        time.sleep(0.1)
    return ""


def _read_row_progress(ranks: Ranks, out: Path) -> Progress | None:
    """Return the row's progress. With several ranks, also write it into the row's folder for other programs."""
    if ranks.count == 1:
        return read_progress(out)
    reported = [progress for rank in range(ranks.count) if (progress := read_progress(ranks.folder(rank)))]
    if not reported:
        return None
    progress = slowest_progress(reported)
    write_atomically(out / PROGRESS_FILE, progress.model_dump_json())
    return progress


def progress_line(progress: Progress) -> str:
    """Return the progress of a row as one line of text."""
    now, peak = format_size(progress.allocated_gib or 0.0), format_size(progress.memory.peak_gib or 0.0)
    memory = f"{now} now, {peak} at the peak"
    remaining = "" if progress.left_s is None else f", at most {progress.left_s:.0f} s left"
    return f"micro-step {progress.micro_steps} of {progress.planned_micro_steps}: {memory}{remaining}"


def _collect_measurements(ranks: Ranks, timeout_reason: str, *, oom_killed: bool) -> list[Measured]:
    """Return the measurements of all ranks, in the order in which they ended.

    timeout_reason: the time limit that the ranks exceeded, in words; "" if they exceeded none. oom_killed: whether
    Linux killed a process because host memory was full. Raises InputError if a rank rejected its input.
    """
    codes = ranks.exit_codes()
    for rank in range(ranks.count):
        if not timeout_reason and (reason := ranks.rejection_reason(rank)):
            raise InputError(reason)
    measurements = sorted(
        (
            _read_reported_measurements(ranks, rank, bool(timeout_reason))
            or _infer_measurements(ranks, rank, codes, timeout_reason, oom_killed)
            for rank in range(ranks.count)
        ),
        key=lambda measured: ranks.ended_at(measured.rank),
    )
    failed = root_failure(measurements)
    return [
        _mark_stopped(measured, failed) if failed and _was_stopped(measured, failed) else measured
        for measured in measurements
    ]


def _read_reported_measurements(ranks: Ranks, rank: int, timed_out: bool) -> Measured | None:
    """Return the measurements that a rank wrote; None if it wrote none, or if it failed when its time was over."""
    measured = ranks.measurements(rank)
    return None if timed_out and measured and measured.failure else measured


def _infer_measurements(
    ranks: Ranks, rank: int, codes: dict[int, int], timeout_reason: str, oom_killed: bool
) -> Measured:
    """Return measurements for a rank that wrote none, derived from its exit code, log and progress.

    codes: exit codes by rank. A rank without an exit code was killed by this process.
    """
    code = codes.get(rank, -signal.SIGTERM)
    progress = read_progress(ranks.folder(rank))
    memory = progress.memory if progress else Memory()
    lost = ranks.lost_reason(rank)
    text = lost or _read_log_end(ranks.log_path(rank))
    outcome: Outcome = "timeout" if timeout_reason else "host_oom" if oom_killed and code == -9 else classify_text(text)
    failure = Failure(
        phase=progress.phase if progress else "load",
        step=progress.step if progress else None,
        rank=rank,
        requested_gib=requested_gib(text),
        kind="timeout" if timeout_reason else LOST_NODE_KIND if lost else _describe_exit(code),
        message=describe_signal(-code)
        if code < 0 and not (timeout_reason or lost) and outcome == "error"
        else error_line(text, NO_OUTPUT),
        where=location_in_log(text),
    )
    return Measured(
        rank=rank,
        outcome=outcome,
        reason=_describe_reason(outcome, failure, memory, timeout_reason),
        failure=failure,
        device=progress.device if progress and progress.device else unknown_device(),
        memory=memory,
    )


def _describe_exit(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _was_stopped(measured: Measured, failed_rank: Measured) -> bool:
    """Return True for a rank that its launcher or this process stopped because another rank had failed."""
    return measured is not failed_rank and measured.failure is not None and measured.failure.kind == "signal 15"


def _mark_stopped(measured: Measured, failed_rank: Measured) -> Measured:
    reason = f"stopped because rank {failed_rank.rank} failed"
    return measured.model_copy(update={"outcome": failed_rank.outcome, "reason": reason, "failure": None})


def _describe_reason(outcome: Outcome, failure: Failure, memory: Memory, timeout_reason: str) -> str:
    if outcome == "timeout":
        at = f" at {failure.where}" if failure.where else ""
        return f"{timeout_reason}, last seen in the {failure.phase} phase{at}; the log has the stack traces"
    return describe_outcome(outcome, failure, memory, qualifier="last seen ")


def unknown_device() -> Device:
    """Return a placeholder for the device of a rank that ended before it reported its device."""
    memory_gib = psutil.virtual_memory().total / GIB
    return Device(kind="cpu", name="unknown", host_cpus=os.cpu_count() or 1, host_memory_gib=memory_gib)


def _read_log_end(path: Path) -> str:
    if not path.exists():
        return ""
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
        return log.read().decode(errors="replace")


def _count_oom_kills() -> int:
    """Return the number of processes that the OOM killer of Linux has killed since boot (/proc/vmstat)."""
    with open("/proc/vmstat") as lines:
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def main() -> int:
    """Run the row that the arguments specify; return 0 if result.json was written, 2 after a user error."""
    parser = argparse.ArgumentParser(prog="worker", description="Run one row on this machine.")
    parser.add_argument("--spec", required=True, type=Path, help="JSON file with the specification of the row")
    parser.add_argument("--out", required=True, type=Path, help="folder for the files of the row")
    options = parser.parse_args()
    prefer_oom_kill()
    try:
        spec = RowSpec.model_validate_json(options.spec.read_bytes())
    except (OSError, ValidationError) as error:
        print(f"{options.spec}: not a valid row specification ({str(error).splitlines()[0]})", file=sys.stderr)
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
