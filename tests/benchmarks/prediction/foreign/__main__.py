"""Measure training programs by other authors on a GPU, and compare the measurements with predictions.

    python -m tests.benchmarks.prediction.foreign measure FOLDER FILE [CASE ...]         on a GPU without a memory limit
    python -m tests.benchmarks.prediction.foreign predict FOLDER FILE CARD [CASE ...]    without a GPU
    python -m tests.benchmarks.prediction.foreign compare MEASURED PREDICTED TABLE

FOLDER: the folder that `python -m tests.benchmarks.prediction.foreign.inputs` wrote, in which the programs run. The
commands append one line per case to FILE and skip the cases that it has. Without CASE: all of cases.yaml. Measured and
predicted memory are those before the third optimizer step; the measured time is the median of later steps.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from experiments.prediction.script.record import CardPrediction, ScriptPrediction
from provision.temporary import TemporaryFolder
from tests.benchmarks.prediction.tables import ErrorTable, predicted_quantities

HERE = Path(__file__).parent
REPOSITORY = Path(__file__).parents[4]
OFFLINE = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false"}
LIMIT_S = 600
LINES = 12
"""Number of log lines that are kept if a program fails."""
STARTED_IN_EACH_PROCESS = """
import atexit
from tests.benchmarks.prediction.unchanged_program import watch
atexit.register(watch().write)
"""


def commands(wanted: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield name and command of each wanted case, of all if none is named."""
    listed = yaml.safe_load((HERE / "cases.yaml").read_text())
    words = {**listed.pop("words"), "SCRIPTS": str(HERE / "scripts")}
    for cases in listed.values():
        for name, command in cases.items():
            if not wanted or name in wanted:
                for word, meaning in words.items():
                    command = command.replace(word, meaning)
                yield name, shlex.split(command)


def measure(folder: Path, command: list[str]) -> list[dict[str, Any]]:
    """Run a command on the GPU until its last timed step. Return each rank's memory, GiB, and time of a step, s."""
    ranks, log = run_watched(folder, command, STARTED_IN_EACH_PROCESS, {})
    return ranks or [{"error": log.strip().splitlines()[-LINES:]}]


def run_watched(
    folder: Path, command: list[str], started: str, variables: Mapping[str, str]
) -> tuple[list[dict[str, Any]], str]:
    """Run a command on the GPU. Return what each rank measured, none if it failed before, and the log.

    started: code that each Python process runs first. variables: further environment variables.
    """
    with TemporaryFolder("program") as temporary:
        (temporary / "sitecustomize.py").write_text(started)
        found = temporary / "ranks"
        found.mkdir()
        path = os.pathsep.join([str(temporary), str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
        own = {"PYTHONPATH": path, "MEASURED_FOLDER": str(found)}
        words = [sys.executable, *command[1:]] if command[0] == "python" else command
        ran = run(words, folder, {**os.environ, **OFFLINE, **variables, **own})
        return [json.loads(file.read_text()) for file in sorted(found.iterdir())], ran.stderr


def predict(folder: Path, command: list[str], card: str) -> list[dict[str, Any]]:
    """Return the predicted memory, GiB, and the time of a step, s, of each rank of a command."""
    try:
        predicted = predictions(folder, command, card)
    except PredictionError as error:
        return [{"error": error.args[0]}]
    return [{"rank": one.rank, "notes": one.notes, **predicted_quantities(one)} for one in predicted]


def predictions(folder: Path, command: list[str], card: str) -> list[ScriptPrediction]:
    """Return the prediction of each rank of a command; PredictionError, with the end of the log, if there is none."""
    options = ["--card", card, "--fake-weights", "--all-ranks", "--json"]
    words = [sys.executable, "-m", "experiments", "predict", *options, "--", *command]
    environment = os.environ | OFFLINE | {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    ran = run(words, folder, environment)
    try:
        found = json.loads(ran.stdout)
    except ValueError:
        raise PredictionError(ran.stderr.strip().splitlines()[-LINES:]) from None
    return list(map(_read, found["predictions"]))


class PredictionError(Exception):
    """The command ``predict`` gave no answer. Its argument: the last lines of its log."""


def _read(found: dict[str, Any]) -> ScriptPrediction:
    """Return a prediction from its JSON, without the fields that the output computes from others."""
    known = CardPrediction.model_fields
    cards = [{name: value for name, value in card.items() if name in known} for card in found["cards"]]
    return ScriptPrediction.model_validate({**found, "cards": cards})


def run(words: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command in a new folder that links to the entries of ``folder``; keep its output.

    TimeoutExpired: after LIMIT_S seconds.
    """
    more: dict[str, Any] = {"capture_output": True, "text": True, "errors": "replace", "timeout": LIMIT_S}
    with TemporaryFolder("foreign") as own:
        for entry in folder.iterdir():
            (own / entry.name).symlink_to(entry.resolve())
        return subprocess.run(words, cwd=own, env=environment, check=False, **more)


def append_answers(file: Path, wanted: list[str], run: Callable[[list[str]], list[dict[str, Any]]]) -> None:
    """Append the answers for every case that the file does not have, with the seconds that they took."""
    done = {json.loads(line)["case"] for line in file.read_text().splitlines()} if file.exists() else set()
    for name, command in commands(wanted):
        if name in done:
            continue
        started = time.monotonic()
        try:
            found = run(command)
        except subprocess.TimeoutExpired:
            found = [{"error": [f"no answer within {LIMIT_S} s"]}]
        lines = [{"case": name, **one, "seconds": round(time.monotonic() - started, 1)} for one in found]
        with file.open("a") as out:
            for line in lines:
                print(line, flush=True)
                out.write(json.dumps(line) + "\n")


def compare(measured: Path, predicted: Path, table: Path) -> None:
    """Write a table of measurements, predictions and errors; print a summary of the errors."""
    before, after = (
        {(one["case"], one.get("rank", 0)): one for one in map(json.loads, path.read_text().splitlines())}
        for path in (measured, predicted)
    )
    errors, failed = ErrorTable("program", "rank"), []
    for (name, rank), one in before.items():
        other = after.get((name, rank), {"error": ["no answer"]})
        for side, answer in (("measured", one), ("predicted", other)):
            if "error" in answer:
                failed.append(f"- {name}: not {side}: {(answer['error'] or [''])[-1]}")
        if "error" not in one and "error" not in other:
            errors.add(name, rank, measured=one, predicted=other)
    print(*errors.summary(), *failed, sep="\n")
    table.write_text("\n".join([errors.text(), *failed]).rstrip() + "\n")


if __name__ == "__main__":
    what, first, second, *more = sys.argv[1:]
    if what == "measure":
        append_answers(Path(second), more, lambda command: measure(Path(first), command))
    elif what == "predict":
        card, *wanted = more
        append_answers(Path(second), wanted, lambda command: predict(Path(first), command, card))
    else:
        compare(Path(first), Path(second), Path(more[0]))
