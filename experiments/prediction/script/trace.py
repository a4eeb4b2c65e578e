"""Trace a training script in processes of its own, for the cards and ranks that are asked for."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from math import inf
from pathlib import Path

from experiments.errors import InputError
from experiments.prediction.script.command import parsed
from experiments.prediction.script.options import ScriptOptions
from experiments.prediction.script.record import ScriptPrediction, smallest_card
from experiments.prediction.script.sandbox import Place, in_words, sandbox
from experiments.suites.attention_kernels import alike
from experiments.suites.cards import card_named
from experiments.system.files import CODE, cache_folder
from experiments.system.packages import require
from experiments.system.processes import own_group

SHOWN = 3
MODULE = "experiments.prediction.script.traced.process"


class ScriptFailed(Exception):
    """The script ended with an exit code other than 0; it has printed why."""

    def __init__(self, code: int) -> None:
        self.code = code
        how = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        super().__init__(f"the script itself failed with {how}; what it printed is above")


def trace_script(
    words: Sequence[str],
    card_names: Sequence[str],
    say: Callable[[str], None],
    options: ScriptOptions,
    name: str = "",
    smallest: bool = False,
) -> list[ScriptPrediction]:
    """Return what is predicted of the command ``words``: one prediction for each group of cards, and each rank.

    smallest: trace only until the card with the least memory that fits is known. Cards whose kernels take the same
    memory are answered by one trace. The script runs in this working directory and with this environment; what it
    writes and where it connects to is up to it, unless options.sandbox is set. Its output goes to stderr. Progress
    shows ``name``, or the first words of the command and where it runs.

    Raises InputError for a command that cannot be run, and ScriptFailed if the script fails.
    """
    require("torch")
    parsed(words)
    what = name or f"{' '.join(words[:4])}, {in_words(options.sandbox)},"
    groups = sorted(alike(card_names), key=len, reverse=True)
    with sandbox() if options.sandbox else nullcontext(Place(Path.cwd(), {})) as place:
        job = {name: getattr(options, name) for name in ("steps", "limit_s", "fake_weights")}
        job |= {"words": place.words(words), "cache": str(cache_folder())}
        found: list[ScriptPrediction] = []
        for number, group in enumerate(groups, 1):
            if smallest and found and not _may_be_smaller(group, found):
                continue
            progress = f" ({number} of {len(groups)}{_so_far(found)})" if len(groups) > 1 else ""
            say(f"tracing {what} for {_named(group)}{progress}")
            first = _traced({**job, "cards": group, "rank": 0}, place)
            found.append(first)
            for rank in range(1, first.ranks if options.all_ranks else 1):
                say(f"tracing rank {rank} of {first.ranks}")
                found.append(_traced({**job, "cards": group, "rank": rank}, place))
    return found


def _may_be_smaller(group: Sequence[str], found: Sequence[ScriptPrediction]) -> bool:
    """Return whether a card of ``group`` may fit and has less memory than the smallest that fits.

    Parameters, gradients and optimizer state take the same on every card; kernels change only activations and buffers.
    """
    best = smallest_card(found)
    below_gib = card_named(best).usable_gib if best else inf
    least_gib = max(one.at_peak.params_gib + one.at_peak.grads_gib + one.at_peak.optimizer_gib for one in found)
    return any(least_gib <= card_named(name).usable_gib < below_gib for name in group)


def _so_far(found: Sequence[ScriptPrediction]) -> str:
    best = smallest_card(found)
    return f", smallest that fits so far: {best}" if best else ""


def _named(group: Sequence[str]) -> str:
    """Return the cards in words, at most three by name."""
    return ", ".join(group) if len(group) <= SHOWN else f"{', '.join(group[:SHOWN])} and {len(group) - SHOWN} more"


def _traced(job: dict[str, object], place: Place) -> ScriptPrediction:
    with tempfile.TemporaryDirectory(prefix="testbed-script-") as folder:
        out = Path(folder) / "prediction.json"
        with own_group(
            [*place.start, sys.executable, "-m", MODULE, json.dumps(job), str(out)],
            cwd=place.folder,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            env={**os.environ, **place.environment, "PYTHONPATH": _path()},
        ) as process:
            code = process.wait()
        if not out.exists():
            raise ScriptFailed(code or 1)
        text = out.read_text()
    if (answer := json.loads(text)).keys() == {"error"}:
        raise InputError(answer["error"])
    return ScriptPrediction.model_validate(answer)


def _path() -> str:
    """Return PYTHONPATH with the folder of this package, so that the process finds it from any working directory."""
    return os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(CODE)])
