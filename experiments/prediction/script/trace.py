"""Trace a training script in separate processes, for the requested cards and ranks."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from math import inf
from pathlib import Path

from experiments.errors import InputError
from experiments.prediction.script.command import parse_command
from experiments.prediction.script.options import ScriptOptions
from experiments.prediction.script.record import SCRIPT_FAILED, ScriptPrediction, smallest_card
from experiments.prediction.script.sandbox import ExecutionPlace, describe_place, sandbox
from experiments.results.wording import format_duration
from experiments.suites.attention_kernels import group_by_kernels
from experiments.suites.cards import card_named
from experiments.system.files import CODE_FOLDER, cache_folder
from experiments.system.packages import require_packages
from experiments.system.processes import process_group
from provision.temporary import TemporaryFolder

MAX_SHOWN_CARDS = 3
SHOWN_WORDS = 4
"""Number of words of a command that progress lines show at least."""
SIMULATION_FAULT = 3
"""Exit code if the simulation fails."""
TRACING_MODULE = "experiments.prediction.script.traced.process"


class ScriptFailed(Exception):
    """The script ended with an exit code other than 0, after it printed the reason.

    cause: a line that names the cause, if it is known.
    """

    def __init__(self, code: int, cause: str = "") -> None:
        self.code = code
        ending = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        super().__init__(cause or SCRIPT_FAILED.format(ending))


class SimulationFailed(ScriptFailed):
    """The simulated GPU failed, not the script that ran on it."""

    def __init__(self, reason: str) -> None:
        super().__init__(SIMULATION_FAULT)
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

    only_smallest_card: trace only until the smallest card that fits is known. Cards whose kernels need the same memory
    form a group, which needs one trace. The script runs in this working directory with this environment. Unless
    options.sandbox is set, it works on the real files and can use the network. The script's output goes to stderr.
    Progress lines show ``name``, by default the first words of the command and the place where it runs.

    Raises InputError for a command that cannot run, ScriptFailed if the script fails, and SimulationFailed if the
    simulated GPU fails.
    """
    require_packages("torch")
    parse_command(command)
    what = name or f"{describe_command(command)}, {describe_place(options.sandbox)},"
    groups = sorted(group_by_kernels(card_names), key=len, reverse=True)
    with sandbox() if options.sandbox else nullcontext(ExecutionPlace(Path.cwd(), {})) as place:
        job = {name: getattr(options, name) for name in ("steps", "limit_s", "fake_weights", "gpus")}
        job |= {"command": place.translate_command(command), "cache": str(cache_folder())}
        predictions: list[ScriptPrediction] = []
        started_s, traced = time.monotonic(), 0
        for number, group in enumerate(groups, 1):
            if only_smallest_card and predictions and not _may_contain_smallest_card(group, predictions):
                continue
            left = _time_left(time.monotonic() - started_s, traced, len(groups) - number + 1)
            progress = (
                f" ({number} of {len(groups)}{left}{_describe_smallest_card_so_far(predictions)})"
                if len(groups) > 1
                else ""
            )
            traced += 1
            print_line(f"tracing {what} for {_card_list(group)}{progress}")
            predictions += _trace_ranks({**job, "cards": group}, place, options.all_ranks, print_line)
    return predictions


def describe_command(command: Sequence[str]) -> str:
    """Return the first words of a command, up to the name of its program."""
    ends = (
        position + (word == "-m")
        for position, word in enumerate(command, 1)
        if word == "-m" or word.endswith((".py", ".ipynb"))
    )
    return " ".join(command[: max(SHOWN_WORDS, next(ends, 0))])


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


def _time_left(took_s: float, traced: int, left: int) -> str:
    """Return in words the time for at most ``left`` further groups; the ``traced`` groups took ``took_s`` seconds."""
    return f", at most {format_duration(left * took_s / traced)} left" if traced else ""


def _card_list(group: Sequence[str]) -> str:
    """Return the names of at most three cards, and the number of the others."""
    return (
        ", ".join(group)
        if len(group) <= MAX_SHOWN_CARDS
        else f"{', '.join(group[:MAX_SHOWN_CARDS])} and {len(group) - MAX_SHOWN_CARDS} more"
    )


def _trace_ranks(
    job: dict[str, object], place: ExecutionPlace, all_ranks: bool, print_line: Callable[[str], None]
) -> list[ScriptPrediction]:
    """Return the prediction of each GPU of the first rank, or of all ranks. A rank reads what lower ranks have sent."""
    with TemporaryFolder("ranks") as folder:
        predictions = _trace_rank({**job, "rank": 0, "exchange_folder": str(folder)}, place)
        for rank in range(1, predictions[0].ranks if all_ranks else 1):
            print_line(f"tracing rank {rank} (ranks 0 to {predictions[0].ranks - 1})")
            predictions += _trace_rank({**job, "rank": rank, "exchange_folder": str(folder)}, place)
    return predictions


def _trace_rank(job: dict[str, object], place: ExecutionPlace) -> list[ScriptPrediction]:
    """Return the prediction of each GPU of a rank."""
    with TemporaryFolder("script") as folder:
        job_file, out = folder / "job.json", folder / "prediction.json"
        job_file.write_text(json.dumps(job), encoding="utf-8")
        with process_group(
            [*place.command_prefix, sys.executable, "-m", TRACING_MODULE, str(job_file), str(out)],
            cwd=place.folder,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            env={**os.environ, **place.environment, "PYTHONPATH": _python_path()},
        ) as process:
            code = process.wait()
        if not out.exists():
            raise ScriptFailed(code or 1)
        text = out.read_text()
    if isinstance(content := json.loads(text), dict):
        if "failure" in content:
            raise ScriptFailed(code, content["failure"])
        if "fault" in content:
            raise SimulationFailed(content["fault"])
        raise InputError(content["error"])
    return [ScriptPrediction.model_validate(one) for one in content]


def _python_path() -> str:
    """Return PYTHONPATH with this program's folder added, so that the process can import it from any directory."""
    return os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(CODE_FOLDER)])
