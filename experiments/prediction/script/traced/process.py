"""Run a script as `__main__` on the phantom device, and write its prediction.

    python -m experiments.prediction.script.traced.process JOB OUT

JOB is a file with the JSON of a TraceJob. OUT gets a list with a ScriptPrediction for each GPU, {"error": LINE} if the
command cannot run, or {"fault": LINE} if the simulation cannot start. The process ends as soon as the training has
taken enough steps; the rest of the script does not run. If the script fails, this process prints the traceback, OUT
gets {"failure": LINE, "code": EXIT_CODE}, and the process ends with the script's exit code. The same applies to a rank
or a program that the script starts, if it fails after it has used the GPU.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel

from experiments.errors import InputError
from experiments.prediction.phantom.library import Phantom
from experiments.prediction.script.command import LaunchCommand, Program, parse_command
from experiments.prediction.script.record import TraceEnd
from experiments.prediction.script.traced.attribution.lines import LineTracker
from experiments.prediction.script.traced.children import Command, trace_started_programs
from experiments.prediction.script.traced.device import install_phantom_device
from experiments.prediction.script.traced.missing import substitutes
from experiments.prediction.script.traced.missing.failure import describe_failure
from experiments.prediction.script.traced.stated import remove_temporary_folders
from experiments.system.files import write_atomically
from experiments.system.signals import die_with_parent

LIMIT_SIGNAL = signal.SIGRTMIN + 7
EXIT_CODE_MASK = 0xFF
"""The bits of an exit code that Linux keeps (exit(3)): -1 becomes 255, and 256 becomes 0."""
exit_process = os._exit
"""Python's own function os._exit; the script gets another one in its place."""
END_DESCRIPTIONS: dict[TraceEnd, str] = {
    "stopped": "took its steps",
    "ended": "ended",
    "time limit": "was stopped at its time limit",
}


class TraceJob(BaseModel):
    """Job of a trace: the command, the cards to predict for (the script sees the first one), and the limits.

    gpus: number of GPUs over which the process spreads a model. exchange_folder: folder with the values that lower
    ranks sent.
    """

    command: tuple[str, ...]
    cards: tuple[str, ...]
    rank: int = 0
    exchange_folder: Path
    steps: int
    limit_s: float
    fake_weights: bool = False
    gpus: int = 1
    cache: Path


def main() -> int:
    """Run the command line; return the script's exit code."""
    job, out = TraceJob.model_validate_json(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2])
    die_with_parent()
    try:
        program, phantom, finish = _install_phantom(job, out)
    except InputError as error:
        _write_error(out, str(error))
        return 2
    except Exception as error:
        traceback.print_exception(error)
        _write_fault(out, error)
        return 1
    code = _run_to_end(program, out, phantom)
    if code:
        return code
    finish("ended")
    return 0


def _run_to_end(program: Program, out: Path, phantom: Phantom) -> int:
    """Run the program; return its exit code. If it fails, print its traceback and write the cause to ``out``."""
    try:
        _run_program(program)
    except BaseException as error:
        return _report_end(error, out, phantom)
    return 0


def _report_end(error: BaseException, out: Path, phantom: Phantom) -> int:
    """Return the exit code of a program that ended with the error. If it failed, print and write the cause."""
    if isinstance(error, InputError):
        _write_error(out, str(error))
        return 2
    if not isinstance(error, SystemExit):
        traceback.print_exception(_cut_traceback(error))
        _write_failure(out, error, 1, phantom)
        return 1
    if isinstance(error.code, str):
        print(error.code, file=sys.stderr)
    code = error.code & EXIT_CODE_MASK if isinstance(error.code, int) else int(error.code is not None)
    if code:
        _write_failure(out, error, code, phantom)
    return code


def _install_phantom(job: TraceJob, out: Path) -> tuple[Program, Phantom, Any]:
    """Return the program, the installed device, and a function that writes the prediction and exits."""
    started_s = time.perf_counter()
    command = parse_command(job.command)
    phantom = install_phantom_device(job.cards[0], job.cache, out.parent)
    from experiments.prediction.peak import MemoryTags
    from experiments.prediction.phantom.gpus import simulate_gpus
    from experiments.prediction.phantom.ranks import simulate_ranks
    from experiments.prediction.script.traced import launchers
    from experiments.prediction.script.traced.build_prediction import Trace, build_prediction
    from experiments.prediction.script.traced.started_ranks import StartedRanks
    from experiments.prediction.script.traced.watch import TrainingWatcher
    from experiments.prediction.times.record import StepRecorder

    if job.fake_weights:
        substitutes.allow()

    def end_if_gpu_was_used(error: BaseException) -> None:
        if watcher.tags.event_count:
            _exit(_report_end(error, out, phantom))

    ranks = StartedRanks(
        job.rank,
        lambda devices, nodes: simulate_ranks(devices, nodes, phantom, job.exchange_folder, job.rank),
        end_if_gpu_was_used,
    )
    ranks.watch_script()

    def prepare(command: Command) -> Program:
        """Return the command's program; simulate the ranks that its launcher starts."""
        if not isinstance(command, LaunchCommand):
            return command
        launch = launchers.parse_launch(command, job.rank)
        ranks.start(*launch.ranks, launch.note)
        return launch.program

    def run_started_program(command: Command) -> int:
        try:
            started_program = prepare(command)
        except InputError as error:
            return _report_end(error, out, phantom)
        code = _run_to_end(started_program, out, phantom)
        if watcher.tags.event_count:
            if code:
                _exit(code)
            finish("ended")
        return code

    program = prepare(command)
    if job.gpus > 1:
        simulate_gpus(phantom, job.gpus)

    def finish(ended: TraceEnd) -> None:
        traced = Trace(phantom, job.cards, job.rank, ranks.world_size, started_s, ranks.notes)
        if watcher.tags.event_count:
            predictions = [build_prediction(traced, watcher, lines, ended, gpu, job.gpus) for gpu in range(job.gpus)]
            write_atomically(out, json.dumps([one.model_dump(mode="json") for one in predictions]))
        elif not out.exists():
            _write_error(out, f"the script {END_DESCRIPTIONS[ended]} and allocated nothing on the GPU")
        _exit(0)

    watcher = TrainingWatcher(MemoryTags(phantom), StepRecorder(phantom), job.steps, lambda: finish("stopped"))
    watcher.install()
    lines = LineTracker(phantom, _program_folder(program))
    _call_after(job.limit_s, lambda: finish("time limit"))
    lines.start()
    _finish_at_sudden_end(lambda: finish("ended"))
    trace_started_programs(lambda: watcher.tags.event_count == 0, run_started_program)
    return program, phantom, finish


def _call_after(limit_s: float, finish: Callable[[], None]) -> None:
    """Call ``finish`` in the main thread after ``limit_s``, by a signal that scripts do not use (they use SIGALRM)."""
    signal.signal(LIMIT_SIGNAL, lambda *_: finish())
    timer = threading.Timer(limit_s, os.kill, (os.getpid(), LIMIT_SIGNAL))
    timer.daemon = True
    timer.start()


def _finish_at_sudden_end(finish: Callable[[], None]) -> None:
    """Call ``finish`` if the script calls os._exit(0); processes that the script forks end as usual."""
    traced_process = os.getpid()

    def exit_or_finish(code: int) -> NoReturn:
        if os.getpid() == traced_process and not code & EXIT_CODE_MASK:
            finish()
        exit_process(code)

    setattr(os, "_exit", exit_or_finish)  # noqa: B010 - mypy rejects the assignment


def _program_folder(program: Program) -> Path:
    """Return the folder of the script's own code."""
    return Path.cwd() if program.kind == "module" else Path(program.target).resolve().parent


def _run_program(program: Program) -> None:
    """Run the program as Python does, with its folder first in sys.path and its arguments in sys.argv."""
    sys.argv = [program.target, *program.arguments]
    if program.kind == "module":
        sys.path[0] = os.getcwd()
        runpy.run_module(program.target, run_name="__main__", alter_sys=True)
        return
    sys.path[0] = str(_program_folder(program))
    if program.kind == "file":
        runpy.run_path(program.target, run_name="__main__")
    else:
        from experiments.prediction.script.traced.notebook import run_notebook

        run_notebook(Path(program.target))


def _cut_traceback(error: BaseException) -> BaseException:
    """Return the error with only the script's part of its traceback, without the modules that started the script."""
    starters = (__file__, runpy.__file__, "<frozen runpy>")
    frame = error.__traceback__
    while frame and frame.tb_frame.f_code.co_filename in starters and frame.tb_next:
        frame = frame.tb_next
    return error.with_traceback(frame)


def _write_failure(out: Path, error: BaseException, code: int, phantom: Phantom) -> None:
    """Write the cause of a failure, unless a program that the script started has failed and written its own cause."""
    if not (out.exists() and isinstance(error, SystemExit | subprocess.CalledProcessError)):
        write_atomically(out, json.dumps({"failure": describe_failure(error, code, phantom), "code": code}))


def _write_fault(out: Path, error: BaseException) -> None:
    name = traceback.format_exception_only(error)[-1].strip()
    write_atomically(out, json.dumps({"fault": f"{name} (its traceback is above)"}))


def _write_error(out: Path, line: str) -> None:
    write_atomically(out, json.dumps({"error": line}))


def _exit(code: int) -> NoReturn:
    """End this process at once, without the script's own exit handlers, after all output is written."""
    remove_temporary_folders()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    exit_process(code)


if __name__ == "__main__":
    _exit(main())
