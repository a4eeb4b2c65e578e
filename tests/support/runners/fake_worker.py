"""Fake of experiments.training.worker that does not train. FAKE selects its behavior ('a=oom,b=hang'; default 'fits').

warm-hang hangs if the process was forked by the warm process; else it fits.

Like the worker, the fake ends when its parent ends. The fake appends every start to the file that FAKE_JOURNAL names,
as 'row start-time pid', and every end as 'row end-time'.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from experiments.results.provenance import code_sha256, versions
from experiments.results.schema import LOG_FILE, PROGRESS_FILE, RESULT_FILE, Device, Memory, Outcome, Progress, Result
from experiments.suites.row_spec import RowSpec
from experiments.system import signals
from experiments.system.files import write_atomically as write
from experiments.system.signals import exit_with_parent

MODULE = "tests.support.runners.fake_worker"
LARGE_BYTES = 200_000_000
CPU = Device(kind="cpu", name="fake", host_cpus=1, host_memory_gib=1.0)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--spec", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    exit_with_parent(os.getppid())
    spec = RowSpec.model_validate_json(options.spec.read_text())
    wanted = dict(pair.split("=") for pair in os.environ.get("FAKE", "").split(",") if pair)
    _append_to_journal(f"{spec.row} {time.time()} {os.getpid()}")
    (options.out / LOG_FILE).write_text(f"first line\nlast line of {spec.row}\n")
    behave(wanted.get(spec.row, "fits"), spec, options.out)
    _append_to_journal(f"{spec.row} {time.time()}")
    return 0


def behave(behavior: str, spec: RowSpec, out: Path) -> None:
    """Write a result or fail, depending on ``behavior``."""
    print(
        f"{spec.row} behaves: {behavior}, started {'cold' if signals.warm_process_pid is None else 'warm'}", flush=True
    )
    if behavior == "die":
        os.kill(os.getpid(), 9)
    if behavior == "silent":
        return
    if behavior == "garbled":
        write(out / RESULT_FILE, "{}")
        return
    if behavior == "child":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    if behavior == "hang" or (behavior == "warm-hang" and signals.warm_process_pid):
        progress = Progress(phase="backward", step=3, micro_steps=7, planned_micro_steps=9, memory=Memory(peak_gib=1.5))
        write(out / PROGRESS_FILE, progress.model_dump_json())
        time.sleep(600)
    if behavior == "slow":
        time.sleep(3)
    if behavior == "large":
        with (out / "large").open("wb") as file:
            file.write(os.urandom(LARGE_BYTES))
    if behavior.startswith("sleep-"):
        time.sleep(float(behavior.removeprefix("sleep-")))
    write(out / RESULT_FILE, fake_result(spec, "oom" if behavior == "oom" else "fits").model_dump_json())


def fake_result(spec: RowSpec, outcome: Outcome) -> Result:
    """Return a result like the worker's."""
    return Result(
        spec=spec,
        fingerprint=spec.fingerprint,
        code=code_sha256(),
        versions=versions(),
        outcome=outcome,
        reason=f"fake worker: {outcome}",
        device=CPU,
        memory=Memory(peak_gib=1.0),
        elapsed_s=2.0,
    )


def _append_to_journal(line: str) -> None:
    if path := os.environ.get("FAKE_JOURNAL"):
        with open(path, "a") as journal:
            journal.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
