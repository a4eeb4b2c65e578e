"""Trace a training script in processes of its own, for the cards and ranks that are asked for."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path

from experiments.errors import InputError
from experiments.prediction.script.command import parsed
from experiments.prediction.script.options import ScriptOptions
from experiments.prediction.script.record import ScriptPrediction
from experiments.suites.attention_kernels import kernels_of
from experiments.suites.cards import card_named
from experiments.system.files import CODE, cache_folder
from experiments.system.packages import require
from experiments.system.signals import die_with_parent

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
) -> list[ScriptPrediction]:
    """Return what is predicted of the command ``words``: one prediction for each group of cards, and each rank.

    Cards whose kernels take the same memory are answered by one trace. The script runs in this working directory and
    with this environment; what it writes and where it connects to is up to it. Its output goes to stderr.

    Raises InputError for a command that cannot be run, and ScriptFailed if the script fails.
    """
    require("torch")
    parsed(words)
    job = {name: getattr(options, name) for name in ("steps", "limit_s", "fake_weights")}
    job |= {"words": list(words), "cache": str(cache_folder())}
    found = []
    for group in alike(card_names):
        say(f"tracing {' '.join(words[:4])} for {', '.join(group)}")
        first = _traced({**job, "cards": group, "rank": 0})
        found.append(first)
        for rank in range(1, first.ranks if options.all_ranks else 1):
            say(f"tracing rank {rank} of {first.ranks}")
            found.append(_traced({**job, "cards": group, "rank": rank}))
    return found


def alike(card_names: Sequence[str]) -> list[list[str]]:
    """Return the cards in groups with the same kernels."""

    def kind(name: str) -> str:
        return str(kernels_of(card_named(name)))

    return [list(group) for _, group in groupby(sorted(card_names, key=kind), key=kind)]


def _traced(job: dict[str, object]) -> ScriptPrediction:
    with tempfile.TemporaryDirectory(prefix="testbed-script-") as folder:
        out = Path(folder) / "prediction.json"
        with _process(json.dumps(job), out) as process:
            code = process.wait()
        if not out.exists():
            raise ScriptFailed(code or 1)
        text = out.read_text()
    if (answer := json.loads(text)).keys() == {"error"}:
        raise InputError(answer["error"])
    return ScriptPrediction.model_validate(answer)


@contextmanager
def _process(job: str, out: Path) -> "Iterator[subprocess.Popen[bytes]]":
    """Start the process of a trace; kill it with all its children at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", MODULE, job, str(out)],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr.fileno(),
        env={**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR", "PYTHONPATH": _path()},
        start_new_session=True,
        preexec_fn=die_with_parent,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _path() -> str:
    """Return PYTHONPATH with the folder of this package, so that the process finds it from any working directory."""
    return os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(CODE)])
