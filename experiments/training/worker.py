"""Runs one row beside the GPU: one process group, one result.json, whatever happens to the trainer inside.

    python -m experiments.training.worker --spec SPEC.json --out ROW_FOLDER

Writes log.txt, telemetry.csv, progress.json while the row runs and result.json, last and at once. Exit code 0 when
result.json was written, whatever it says; 2 with one line for a user's mistake.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import psutil
from pydantic import ValidationError

from experiments.parent import die_with_parent
from experiments.provenance import code_sha256, git_commit, versions
from experiments.recipe import RowSpec
from experiments.result import (
    GIB,
    LOG_FILE,
    MEASURED_FILE,
    PROGRESS_FILE,
    RESULT_FILE,
    SPEC_FILE,
    TELEMETRY_FILE,
    Device,
    Ending,
    Failure,
    Measured,
    Memory,
    Progress,
    Result,
    read_progress,
    write_atomically,
)
from experiments.training.ending import ending_of_text, reason_of, requested_gib
from experiments.training.telemetry import Telemetry

LOG_TAIL_BYTES = 20_000
GONE_WITHIN_S = 15.0


def run_row(spec: RowSpec, out: Path, command: str) -> Result | None:
    """Run the trainer to its end, or to the row's time limit, and write result.json.

    Returns None when the trainer refused its input; what it said is in log.txt.
    """
    started_at, begun = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    for name in (RESULT_FILE, MEASURED_FILE, PROGRESS_FILE):
        (out / name).unlink(missing_ok=True)
    (out / SPEC_FILE).write_text(spec.model_dump_json(indent=2))
    kills_before = _oom_kills()
    with (out / LOG_FILE).open("wb") as log:
        trainer = _start_trainer(out, log.fileno())
        with Telemetry(out / TELEMETRY_FILE, trainer.pid) as telemetry:
            timed_out = _wait(trainer, out, spec.settings.time_limit_s)
        end_group(trainer.pid)
    if trainer.returncode == 2 and not timed_out:
        return None
    measured = _measured(out, trainer.returncode, timed_out, spec, oom_killed=_oom_kills() > kills_before)
    result = Result(
        **measured.model_dump(),
        spec=spec,
        fingerprint=spec.fingerprint,
        code=code_sha256(),
        versions=versions(),
        git_commit=git_commit(),
        command=command,
        started_at=started_at,
        elapsed_s=time.monotonic() - begun,
        telemetry=telemetry.summary(),
    )
    (out / MEASURED_FILE).unlink(missing_ok=True)
    (out / PROGRESS_FILE).unlink(missing_ok=True)
    write_atomically(out / RESULT_FILE, result.model_dump_json(indent=1))
    return result


def go_first() -> None:
    """Have this process die with its parent, and before all others when the host's memory runs out."""
    die_with_parent()
    Path("/proc/self/oom_score_adj").write_text("1000")


def end_group(leader: int) -> None:
    """Kill a process group and wait until none of it is left, 15 s at most.

    Raises TimeoutError naming the processes that would not go.
    """
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
    limit = time.monotonic() + GONE_WITHIN_S
    while left := _group(leader):
        if time.monotonic() > limit:
            raise TimeoutError(f"processes {left} did not end within {GONE_WITHIN_S:.0f} s of being killed")
        time.sleep(0.05)


def _group(leader: int) -> list[int]:
    """Processes of a group that still live; a zombie holds nothing and does not count."""
    found = []
    for process in psutil.process_iter(["status"]):
        with suppress(ProcessLookupError):
            if os.getpgid(process.pid) == leader and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def _start_trainer(out: Path, log: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "experiments.training.rank", str(out / SPEC_FILE), str(out)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        preexec_fn=go_first,
    )


def _wait(trainer: "subprocess.Popen[bytes]", out: Path, limit_s: float) -> bool:
    """Wait for the trainer and say what it does; True when it met the time limit, left its stacks and was ended."""
    limit = time.monotonic() + limit_s
    said = None
    while trainer.poll() is None:
        if time.monotonic() > limit:
            _dump_stacks(trainer)
            return True
        if (progress := read_progress(out)) and progress.micro_steps != said:
            said = progress.micro_steps
            print(in_words(progress), flush=True)
        time.sleep(0.1)
    return False


def in_words(progress: Progress) -> str:
    """One line on where a row is."""
    memory = f"{progress.allocated_gib or 0:.3g} GiB now, {progress.memory.peak_gib or 0:.3g} GiB at the peak"
    left = "" if progress.left_s is None else f", {progress.left_s:.0f} s left at most"
    return f"micro-step {progress.micro_steps} of {progress.planned_micro_steps}: {memory}{left}"


def _dump_stacks(trainer: "subprocess.Popen[bytes]") -> None:
    """Have the trainer print the stacks of its threads into the log (it registered faulthandler), then end it."""
    with suppress(ProcessLookupError):
        trainer.send_signal(signal.SIGUSR1)
        time.sleep(1)
        os.killpg(trainer.pid, signal.SIGKILL)
    trainer.wait()


def _measured(out: Path, code: int, timed_out: bool, spec: RowSpec, *, oom_killed: bool) -> Measured:
    """What the trainer wrote, or what can be said of one that ended without a word."""
    with suppress(FileNotFoundError):
        return Measured.model_validate_json((out / MEASURED_FILE).read_bytes())
    progress = read_progress(out)
    memory = progress.memory if progress else Memory()
    text = _tail(out / LOG_FILE)
    outcome: Ending = "timeout" if timed_out else "host_oom" if oom_killed and code == -9 else ending_of_text(text)
    failure = Failure(
        phase=progress.phase if progress else "load",
        step=progress.step if progress else None,
        requested_gib=requested_gib(text),
        kind="timeout" if timed_out else f"signal {-code}" if code < 0 else f"exit code {code}",
        message=last_line(text),
    )
    return Measured(
        outcome=outcome,
        reason=_reason(outcome, failure, memory, spec.settings.time_limit_s),
        failure=failure,
        device=progress.device if progress and progress.device else unknown_device(),
        memory=memory,
    )


def _reason(outcome: Ending, failure: Failure, memory: Memory, limit_s: int) -> str:
    if outcome == "timeout":
        return f"met its time limit of {limit_s} s in the {failure.phase} phase; the stacks are in the log"
    return reason_of(outcome, failure, memory)


def unknown_device() -> Device:
    """Stands where the trainer ended before it had looked at its device."""
    memory_gib = psutil.virtual_memory().total / GIB
    return Device(kind="cpu", name="not reached", host_cpus=os.cpu_count() or 1, host_memory_gib=memory_gib)


def _tail(path: Path) -> str:
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
    go_first()
    try:
        spec = RowSpec.model_validate_json(options.spec.read_bytes())
    except (OSError, ValidationError) as error:
        print(f"{options.spec}: not a row's spec ({str(error).splitlines()[0]})", file=sys.stderr)
        return 2
    print(f"{spec.suite}/{spec.row} on {spec.card}, {spec.size}, {spec.length}", flush=True)
    result = run_row(spec, options.out, os.environ.get("TESTBED_COMMAND") or shlex.join(sys.orig_argv))
    if result is None:
        print(last_line(_tail(options.out / LOG_FILE)), file=sys.stderr)
        return 2
    print(f"{result.outcome}: {result.reason}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
