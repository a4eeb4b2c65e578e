"""Trace a training script: run it on the simulated GPU, in a process for each group of cards and each rank."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import takewhile
from math import inf
from pathlib import Path
from typing import cast

from experiments.errors import InputError
from experiments.prediction.script.command import parse_command
from experiments.prediction.script.options import ScriptOptions
from experiments.prediction.script.record import SCRIPT_FAILED, ScriptPrediction, smallest_card
from experiments.prediction.script.sandbox import ExecutionPlace, describe_place, sandbox
from experiments.prediction.script.store import PredictionStore
from experiments.results.wording import format_duration
from experiments.suites.attention_kernels import group_by_kernels
from experiments.suites.cards import card_named
from experiments.system.files import CODE_FOLDER, cache_folder
from experiments.system.packages import require_packages
from experiments.system.processes import process_group
from provision.hardware.host_memory import processes_that_fit
from provision.temporary import TemporaryFolder

MAX_SHOWN_CARDS = 3
MIN_SHOWN_WORDS = 4
"""Minimum number of words of a command in progress lines."""
SIMULATION_FAILED_CODE = 3
"""Exit code if the simulation fails."""
TRACING_MODULE = "experiments.prediction.script.traced.process"
KILLED_HINT = "probably this machine or its container ran out of memory"
PROCESS_REPLACED = (
    "the script replaced its process by another program (os.exec), which ended; only a training in the process of the "
    "script can be predicted"
)
MAX_LIMIT_S = 1e8
Job = dict[str, object]
"""The fields of a TraceJob (traced/process.py), JSON-compatible."""


class ScriptFailed(Exception):
    """The script ended with an exit code other than 0, after it printed the reason.

    cause: a line that names the cause, if it is known.
    """

    def __init__(self, code: int, cause: str = "") -> None:
        self.code = code
        ending = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        hint = f"; {KILLED_HINT}" if -code == signal.SIGKILL else ""
        super().__init__(cause or f"{SCRIPT_FAILED.format(ending)}{hint}")


class SimulationFailed(ScriptFailed):
    """The simulated GPU failed, not the script that ran on it."""

    def __init__(self, reason: str) -> None:
        super().__init__(SIMULATION_FAILED_CODE)
        self.args = (f"the simulation failed: {reason}; if the command works on a GPU, this is a fault of testbed",)


def trace_script(
    command: Sequence[str],
    card_names: Sequence[str],
    print_line: Callable[[str], None],
    options: ScriptOptions,
    name: str = "",
    only_smallest_card: bool = False,
) -> list[ScriptPrediction]:
    """Return predictions of the script that ``command`` runs: one for each rank, GPU of the rank, and group of cards.

    Cards whose kernels need the same memory form a group, which needs one trace. The first group is traced alone. The
    other groups are traced side by side: at most one for each CPU, and no more than fit into memory. A group that fails
    after another group has succeeded is left out, with a line that says why.

    The script runs in this working directory with this environment. Unless options.sandbox is set, the script works on
    the real files and can use the network. The script's output goes to stderr; traces side by side show no output.

    Groups whose predictions are in options.store are not traced; new predictions are written to the store. Only
    programs of this project have a store. They do not inherit the variables of a launcher.

    name: stands for the script in progress lines; by default the first words of the command, and the place where it
    runs. only_smallest_card: trace only until the smallest card that fits is known.

    Raises InputError for a command that cannot run, ScriptFailed if the script fails, and SimulationFailed if the
    simulated GPU fails.
    """
    require_packages("torch")
    if not 0 < options.limit_s <= MAX_LIMIT_S:
        raise InputError(f"--time-limit {options.limit_s:g}: allowed: more than 0 and at most {MAX_LIMIT_S:g} seconds")
    folder = _working_folder()
    parse_command(command)
    what = name or f"{describe_command(command)}, {describe_place(options.sandbox)},"
    groups = sorted(group_by_kernels(card_names), key=len, reverse=True)
    here = ExecutionPlace(folder, {}, hides_launcher=options.store is not None)
    with sandbox() if options.sandbox else nullcontext(here) as place:
        job = {name: getattr(options, name) for name in ("steps", "limit_s", "fake_weights", "gpus")}
        job |= {"command": place.translate_command(command), "cache": str(cache_folder())}
        predictions: list[ScriptPrediction] = []
        started_s, traced = time.monotonic(), 0
        while groups:
            stored = options.store.read(groups[0]) if options.store else None
            if stored is not None:
                predictions, groups = [*predictions, *stored], groups[1:]
            else:
                count = _traces_at_a_time() if predictions else 1
                next_groups = _groups_before_stored(groups[:count], options.store)
                groups = groups[len(next_groups) :]
                took_s = time.monotonic() - started_s
                progress = _describe_progress(predictions, traced, len(next_groups), len(groups), took_s)
                print_line(f"tracing {what} for {'; '.join(map(_card_list, next_groups))}{progress}")
                jobs = [{**job, "cards": group} for group in next_groups]
                found = _trace_groups(jobs, place, options.all_ranks, print_line, bool(predictions))
                predictions += found
                traced += len(next_groups)
                if options.store:
                    for group in next_groups:
                        options.store.write(group, found)
            if only_smallest_card:
                groups = [group for group in groups if _may_contain_smallest_card(group, predictions)]
    return predictions


def _working_folder() -> Path:
    """Return the current folder. Raises InputError if it was removed."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise InputError("the current folder was removed; change to another folder") from None


def _groups_before_stored(groups: Sequence[list[str]], store: PredictionStore | None) -> list[list[str]]:
    """Return the groups before the first group with stored predictions. ``groups[0]`` must not have stored ones."""
    return [*groups[:1], *takewhile(lambda group: store is None or store.read(group) is None, groups[1:])]


def describe_command(command: Sequence[str]) -> str:
    """Return the first words of a command, up to the name of its program."""
    ends = (
        position + (word == "-m")
        for position, word in enumerate(command, 1)
        if word == "-m" or word.endswith((".py", ".ipynb"))
    )
    return " ".join(command[: max(MIN_SHOWN_WORDS, next(ends, 0))])


def _may_contain_smallest_card(group: Sequence[str], predictions: Sequence[ScriptPrediction]) -> bool:
    """Return whether a card of ``group`` may fit and has less memory than the smallest card that fits so far.

    Parameters, gradients and optimizer state take the same memory on every card. Kernels change only activations and
    buffers.
    """
    best = smallest_card(predictions)
    below_gib = card_named(best).usable_gib if best else inf
    least_gib = max(one.at_peak.params_gib + one.at_peak.grads_gib + one.at_peak.optimizer_gib for one in predictions)
    return any(least_gib <= card_named(name).usable_gib < below_gib for name in group)


def _describe_smallest_card_so_far(predictions: Sequence[ScriptPrediction]) -> str:
    best = smallest_card(predictions)
    return f", smallest that fits so far: {best}" if best else ""


def _describe_progress(
    predictions: Sequence[ScriptPrediction], traced: int, running: int, waiting: int, took_s: float
) -> str:
    """Return the numbers of the groups that are traced now, the maximum time left, and the smallest card so far.

    Return '' for a single group. traced: number of groups that were traced, in ``took_s`` seconds. running: number of
    groups that are traced now. waiting: number of groups that follow.
    """
    count = traced + running + waiting
    if count == 1:
        return ""
    numbers = f"{traced + 1}" if running == 1 else f"{traced + 1} to {traced + running}"
    left = f", at most {format_duration((running + waiting) * took_s / traced)} left" if traced else ""
    return f" ({numbers} of {count}{left}{_describe_smallest_card_so_far(predictions)})"


def _traces_at_a_time() -> int:
    """Return how many traces run side by side: at most one for each CPU, and no more than fit into memory.

    Each trace is assumed to need as much memory as the largest trace so far.
    """
    largest_yet_bytes = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return max(1, min(len(os.sched_getaffinity(0)), processes_that_fit(largest_yet_bytes)))


def _card_list(group: Sequence[str]) -> str:
    """Return the names of at most three cards, and the number of the others."""
    return (
        ", ".join(group)
        if len(group) <= MAX_SHOWN_CARDS
        else f"{', '.join(group[:MAX_SHOWN_CARDS])} and {len(group) - MAX_SHOWN_CARDS} more"
    )


def _trace_groups(
    jobs: Sequence[Job], place: ExecutionPlace, all_ranks: bool, print_line: Callable[[str], None], may_fail: bool
) -> list[ScriptPrediction]:
    """Return the predictions of jobs for different cards, which run side by side.

    If one of several jobs fails, all run once more, one after the other: scripts that write the same files can disturb
    each other. Several jobs that run side by side do not show the output of the script. may_fail: whether a job that
    fails on its own is left out, with a line that says why; otherwise its error is raised.
    """
    if len(jobs) > 1:
        try:
            return _trace_ranks(jobs, place, all_ranks, print_line, show_output=False)
        except (InputError, ScriptFailed):
            print_line("a trace failed while others were running; tracing all of them again, one after the other")
    predictions: list[ScriptPrediction] = []
    for job in jobs:
        try:
            predictions += _trace_ranks([job], place, all_ranks, print_line)
        except (InputError, ScriptFailed) as problem:
            if not may_fail:
                raise
            print_line(f"not predicted for {_card_list(cast(Sequence[str], job['cards']))}: {problem}")
    return predictions


def _trace_ranks(
    jobs: Sequence[Job],
    place: ExecutionPlace,
    all_ranks: bool,
    print_line: Callable[[str], None],
    show_output: bool = True,
) -> list[ScriptPrediction]:
    """Return the prediction of each GPU of the first rank, or of all ranks. A rank reads what lower ranks have sent."""
    with ExitStack() as stack:
        folders = [stack.enter_context(TemporaryFolder("ranks")) for _ in jobs]
        jobs = [{**job, "exchange_folder": str(folder)} for job, folder in zip(jobs, folders, strict=True)]
        predictions = _trace_rank([{**job, "rank": 0} for job in jobs], place, show_output)
        ranks = predictions[0].ranks
        for rank in range(1, ranks if all_ranks else 1):
            print_line(f"tracing rank {rank} (ranks 0 to {ranks - 1})")
            predictions += _trace_rank([{**job, "rank": rank} for job in jobs], place, show_output)
    return predictions


def _trace_rank(jobs: Sequence[Job], place: ExecutionPlace, show_output: bool) -> list[ScriptPrediction]:
    """Return the prediction of each GPU of a rank, for each job. show_output: show the output of the script."""
    with ExitStack() as stack:
        results = [stack.enter_context(_start_trace(job, place, show_output)) for job in jobs]
        return [prediction for wait_for_result in results for prediction in wait_for_result()]


@contextmanager
def _start_trace(job: Job, place: ExecutionPlace, show_output: bool) -> Iterator[Callable[[], list[ScriptPrediction]]]:
    """Start a trace; yield a function that waits for it and returns the prediction of each GPU of the rank."""
    with TemporaryFolder("script") as folder:
        job_file, out = folder / "job.json", folder / "prediction.json"
        job_file.write_text(json.dumps(job), encoding="utf-8")
        with process_group(
            [*place.command_prefix, sys.executable, "-m", TRACING_MODULE, str(job_file), str(out)],
            cwd=place.folder,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno() if show_output else subprocess.DEVNULL,
            stderr=sys.stderr.fileno() if show_output else subprocess.DEVNULL,
            env={**place.inherited_environment, **place.environment, "PYTHONPATH": _python_path()},
        ) as process:
            yield lambda: _read_result(process.wait(), out)


def _read_result(code: int, out: Path) -> list[ScriptPrediction]:
    """Return the predictions in ``out``, or raise the error that it names. code: exit code of the trace."""
    if not out.exists():
        raise ScriptFailed(code) if code else InputError(PROCESS_REPLACED)
    if isinstance(content := json.loads(out.read_text()), dict):
        if "failure" in content:
            raise ScriptFailed(code or content["code"], content["failure"])
        if "fault" in content:
            raise SimulationFailed(content["fault"])
        raise InputError(content["error"])
    return [ScriptPrediction.model_validate(one) for one in content]


def _python_path() -> str:
    """Return PYTHONPATH with this program's folder added, so that the process can import it from any directory."""
    return os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(CODE_FOLDER)])
