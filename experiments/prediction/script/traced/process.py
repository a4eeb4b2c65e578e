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
from typing import Any, NamedTuple

from pydantic import BaseModel

from experiments.errors import InputError
from experiments.prediction.phantom.library import Phantom, load
from experiments.prediction.script.command import Launch, Program, parsed
from experiments.prediction.script.record import Ended
from experiments.suites.attention_kernels import kernels_of
from experiments.suites.cards import card_named
from experiments.system.files import write_atomically
from experiments.system.signals import die_with_parent

QUIET = {
    "TORCHDYNAMO_DISABLE": "1",
    "WANDB_MODE": "disabled",
    "MLFLOW_TRACKING_URI": "file:///dev/null",
    "COMET_MODE": "disabled",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}
"""Compilation, trackers and telemetry are off."""
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


class Traced(NamedTuple):
    """The running trace."""

    job: Job
    phantom: Phantom
    ranks: int
    begun: float


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
    except BaseException as error:
        traceback.print_exception(_own_part(error))
        return 1
    finish("ended")
    return 0


def _prepare(job: Job, out: Path) -> tuple[Program, Any]:
    """Put the phantom device in place; return the program, and a function that writes the answer and ends."""
    begun = time.perf_counter()
    command = parsed(job.words)
    phantom = load(job.cache)
    os.environ.update(QUIET)
    import torch

    from experiments.prediction.peak import Tags
    from experiments.prediction.phantom.cuda import replace_cuda
    from experiments.prediction.phantom.ranks import replace_ranks
    from experiments.prediction.script.traced import imports, launchers, missing
    from experiments.prediction.script.traced.answer import prediction
    from experiments.prediction.script.traced.watch import Watcher

    card = card_named(job.cards[0])
    torch.set_num_threads(1)
    replace_cuda(phantom, card)
    phantom.install(kernels_of(card))
    phantom.watch_host()
    imports.prepare_imports()
    imports.note_compile()
    if job.fake_weights:
        missing.make_missing_weights()
    program, ranks = launchers.launched(command) if isinstance(command, Launch) else (command, launchers.Ranks(1, 1))
    if isinstance(command, Launch):
        replace_ranks(*ranks, job.rank)

    def finish(ended: Ended) -> None:
        traced = Traced(job, phantom, ranks.world, begun)
        if watcher.tags.event:
            write_atomically(out, prediction(traced, watcher, ended).model_dump_json())
        else:
            _write_error(out, f"the script {ENDED[ended]} and allocated nothing on the GPU")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

    watcher = Watcher(Tags(phantom), job.steps, lambda: finish("stopped"))
    watcher.install()
    signal.signal(signal.SIGALRM, lambda *_: finish("time limit"))
    signal.setitimer(signal.ITIMER_REAL, job.limit_s)
    return program, finish


def _run(program: Program) -> None:
    """Run the program as Python would: its folder first in sys.path, its arguments in sys.argv."""
    sys.argv = [program.target, *program.arguments]
    if program.kind == "module":
        sys.path[0] = os.getcwd()
        runpy.run_module(program.target, run_name="__main__", alter_sys=True)
        return
    sys.path[0] = str(Path(program.target).resolve().parent)
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
