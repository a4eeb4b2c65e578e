"""The process of a traced script: the phantom device is put in place, then the script runs as `__main__`.

    python -m experiments.prediction.script.traced.process JOB OUT

JOB is the JSON of a Job. OUT gets a ScriptPrediction, or {"error": LINE} for a command that cannot run. The process
ends as soon as the training has taken enough steps; whatever the script would do afterwards is not done. A script that
fails prints its own traceback, and its exit code is this one's.
"""

import json
import os
import runpy
import signal
import sys
import time
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from experiments.errors import InputError
from experiments.prediction.script.command import Launch, Program, parsed
from experiments.prediction.script.record import Ended
from experiments.prediction.script.traced.device import phantom_device
from experiments.prediction.script.traced.lines import Lines
from experiments.system.files import write_atomically
from experiments.system.signals import die_with_parent

ENDED: dict[Ended, str] = {"stopped": "took its steps", "ended": "ended", "time limit": "was stopped at its time limit"}


class Job(BaseModel):
    """One trace: the command, the cards to answer for (the first is shown to the script), and its limits."""

    words: tuple[str, ...]
    cards: tuple[str, ...]
    rank: int = 0
    steps: int
    limit_s: float
    fake_weights: bool = False
    cache: Path


def main() -> int:
    """Run the command line; return the script's exit code."""
    job, out = Job.model_validate_json(sys.argv[1]), Path(sys.argv[2])
    die_with_parent()
    try:
        program, finish = _prepare(job, out)
    except InputError as error:
        _write_error(out, str(error))
        return 2
    try:
        _run(program)
    except SystemExit as end:
        if end.code not in (None, 0):
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
            return end.code if isinstance(end.code, int) else 1
    except InputError as error:
        _write_error(out, str(error))
        return 2
    except BaseException as error:
        traceback.print_exception(_own_part(error))
        return 1
    finish("ended")
    return 0


def _prepare(job: Job, out: Path) -> tuple[Program, Any]:
    """Put the phantom device in place; return the program, and a function that writes the answer and ends."""
    begun = time.perf_counter()
    command = parsed(job.words)
    phantom = phantom_device(job.cards[0], job.cache)
    from experiments.prediction.peak import MemoryTags
    from experiments.prediction.phantom.ranks import replace_ranks
    from experiments.prediction.script.traced import launchers, missing
    from experiments.prediction.script.traced.answer import Traced, prediction
    from experiments.prediction.script.traced.watch import Watcher

    if job.fake_weights:
        missing.make_missing_weights()
    program, ranks = launchers.launched(command) if isinstance(command, Launch) else (command, launchers.Ranks(1, 1))
    if isinstance(command, Launch):
        replace_ranks(*ranks, job.rank)

    def finish(ended: Ended) -> None:
        traced = Traced(phantom, job.cards, job.rank, ranks.world, begun)
        if watcher.tags.event_count:
            write_atomically(out, prediction(traced, watcher, lines, ended).model_dump_json())
        else:
            _write_error(out, f"the script {ENDED[ended]} and allocated nothing on the GPU")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

    watcher = Watcher(MemoryTags(phantom), job.steps, lambda: finish("stopped"))
    watcher.install()
    lines = Lines(phantom, _folder(program))
    signal.signal(signal.SIGALRM, lambda *_: finish("time limit"))
    signal.setitimer(signal.ITIMER_REAL, job.limit_s)
    lines.follow()
    return program, finish


def _folder(program: Program) -> Path:
    """Return the folder of the script's own code."""
    return Path.cwd() if program.kind == "module" else Path(program.target).resolve().parent


def _run(program: Program) -> None:
    """Run the program as Python would: its folder first in sys.path, its arguments in sys.argv."""
    sys.argv = [program.target, *program.arguments]
    if program.kind == "module":
        sys.path[0] = os.getcwd()
        runpy.run_module(program.target, run_name="__main__", alter_sys=True)
        return
    sys.path[0] = str(_folder(program))
    if program.kind == "file":
        runpy.run_path(program.target, run_name="__main__")
    else:
        _run_notebook(Path(program.target))


def _run_notebook(path: Path) -> None:
    """Run the code cells of a notebook in their order, with IPython's magics."""
    import nbformat
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    shell.user_module = sys.modules["__main__"] = ModuleType("__main__")
    shell.user_ns = vars(shell.user_module)
    shell.init_user_ns()
    notebook: Any = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            shell.run_cell(cell.source, store_history=True).raise_error()


def _own_part(error: BaseException) -> BaseException:
    """Return the error with the script's part of its traceback: what lies below the modules that start it."""
    starters = (__file__, runpy.__file__, "<frozen runpy>")
    frame = error.__traceback__
    while frame and frame.tb_frame.f_code.co_filename in starters and frame.tb_next:
        frame = frame.tb_next
    return error.with_traceback(frame)


def _write_error(out: Path, line: str) -> None:
    write_atomically(out, json.dumps({"error": line}))


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
