"""Trace a training script in processes of its own, for the cards and ranks that are asked for."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from experiments.errors import InputError
from experiments.prediction.script.command import parsed
from experiments.prediction.script.options import ScriptOptions
from experiments.prediction.script.record import ScriptPrediction
from experiments.prediction.script.sandbox import Place, in_words, sandbox
from experiments.suites.attention_kernels import group_by_kernels
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
) -> list[ScriptPrediction]:
    """Return what is predicted of the command ``words``: one prediction for each group of cards, and each rank.

    Cards whose kernels take the same memory are answered by one trace. The script runs in this working directory and
    with this environment; what it writes and where it connects to is up to it, unless options.sandbox is set. Its
    output goes to stderr. Progress shows ``name``, or the first words of the command and where it runs.

    Raises InputError for a command that cannot be run, and ScriptFailed if the script fails.
    """
    require("torch")
    parsed(words)
    what = name or f"{' '.join(words[:4])}, {in_words(options.sandbox)},"
    groups = group_by_kernels(card_names)
    with sandbox() if options.sandbox else nullcontext(Place(Path.cwd(), {})) as place:
        job = {name: getattr(options, name) for name in ("steps", "limit_s", "fake_weights")}
        job |= {"words": place.words(words), "cache": str(cache_folder())}
        found = []
        for number, group in enumerate(groups, 1):
            progress = f" ({number} of {len(groups)})" if len(groups) > 1 else ""
            say(f"tracing {what} for {_named(group)}{progress}")
            first = _traced({**job, "cards": group, "rank": 0}, place)
            found.append(first)
            for rank in range(1, first.ranks if options.all_ranks else 1):
                say(f"tracing rank {rank} of {first.ranks}")
                found.append(_traced({**job, "cards": group, "rank": rank}, place))
    return found


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
