"""Measure the first of several ranks alone on one GPU, with DeepSpeed and FSDP, and compare it with predictions.

    python -m tests.benchmarks.prediction.lone_loops measure FILE [CASE ...]    on a GPU without a memory limit
    python -m tests.benchmarks.prediction.lone_loops predict FILE [CASE ...]    without a GPU
    python -m tests.benchmarks.prediction.lone_loops compare

The trainings of cases.yaml run with a process group whose collective operations do nothing (lone_rank.py). ``measure``
and ``predict`` write a line of JSON for each case to FILE, and skip the cases that it has; a case that failed runs
again. Without CASE: all of cases.yaml. Measured and predicted memory are those before the third optimizer step.
``compare`` reads lone_loops.jsonl and lone_loops_predicted.jsonl in experiments/evidence/prediction_h200, and writes
lone_loops.md there.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import yaml

from experiments.system.files import write_atomically
from provision.temporary import TemporaryFolder
from tests.benchmarks.prediction.loop_cases import loop_words
from tests.benchmarks.prediction.tables import EVIDENCE, ErrorTable
from tests.benchmarks.prediction.unchanged_program import SCRIPTS, STEPS, measure_one

HERE = Path(__file__).parent
REPOSITORY = Path(__file__).parents[4]
CARD = "h200_141gb"
LIMIT_S = 300
LINES = 40
"""Number of log lines that are kept if a case fails."""
MEASURED = ("device", "torch", "peak_gib", "reserved_gib")
LONE_RANK = ("-m", "tests.benchmarks.prediction.lone_loops.lone_rank")
Answer = dict[str, Any]


class Case(NamedTuple):
    """A training on ``ranks`` ranks. words: the command line after `python`."""

    name: str
    ranks: int
    words: tuple[str, ...]


def read_cases() -> list[Case]:
    """Return the cases of cases.yaml."""
    listed = yaml.safe_load((HERE / "cases.yaml").read_text())
    cases = []
    for name, case in listed["loops"].items():
        words = loop_words(case["loop"], case["model"], listed["common"] | case["settings"], case.get("sizes", {}))
        cases.append(Case(name, case["ranks"], words))
    for name, case in listed["scripts"].items():
        script, *options = case["script"].split()
        cases.append(Case(name, case["ranks"], (str(SCRIPTS / script), *options)))
    return cases


def selected_cases(wanted: list[str]) -> list[Case]:
    """Return the cases with these names, or all cases without names. Exits with an error for an unknown name."""
    known = {case.name: case for case in read_cases()}
    if unknown := [name for name in wanted if name not in known]:
        raise SystemExit(f"{unknown[0]}: unknown case; allowed: {', '.join(known)}")
    return [known[name] for name in wanted or known]


def measure(case: Case) -> Answer:
    """Return the memory of the first rank in GiB, the GPU and the version of PyTorch; or {"error": LINES}.

    A process of its own runs the case. A fork could not use the GPU if this process has looked for one.
    """
    words = [sys.executable, "-m", __spec__.parent, "one", str(case.ranks), *case.words]
    with TemporaryFolder("measured") as folder:
        path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"MEASURED_FOLDER": str(folder), "PYTHONPATH": path}
        log = folder / "log.txt"
        with log.open("w") as out:
            end = _run(words, environment, out)
        found = folder / "0.json"
        if not found.exists():
            return {"error": [*log.read_text(errors="replace").splitlines()[-LINES:], end]}
        measured = json.loads(found.read_text())
    return {name: measured[name] for name in MEASURED}


def _run(words: list[str], environment: dict[str, str], out: TextIO) -> str:
    """Run a command; return how it ended."""
    try:
        ran = subprocess.run(words, env=environment, stdout=out, stderr=out, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer within {LIMIT_S} s"
    return f"exit status {ran.returncode}"


def predict(case: Case) -> Answer:
    """Return the predicted memory of the first rank in GiB; or {"error": LINES}."""
    from experiments.errors import InputError
    from experiments.prediction.script.options import ScriptOptions
    from experiments.prediction.script.trace import trace_script

    start = ["python"] if case.ranks == 1 else ["torchrun", "--nproc-per-node", str(case.ranks)]
    try:
        (one,) = trace_script([*start, *case.words], [CARD], lambda _: None, ScriptOptions(steps=STEPS))
    except InputError as error:
        return {"error": str(error).splitlines()}
    return {"peak_gib": one.peak_gib, "reserved_gib": one.reserved_gib}


def read_answers(file: Path) -> dict[str, Answer]:
    """Return the answers in a file by the names of their cases."""
    lines = file.read_text().splitlines() if file.exists() else []
    return {answer["case"]: answer for answer in map(json.loads, lines)}


def answer_cases(file: Path, wanted: list[str], run: Callable[[Case], Answer]) -> bool:
    """Write the answer for each wanted case that has none to the file. Return whether all wanted cases succeeded."""
    cases, answers = selected_cases(wanted), read_answers(file)
    for number, case in enumerate(cases, start=1):
        kept = case.name in answers and "error" not in answers[case.name]
        if not kept:
            started = time.monotonic()
            answer = run(case)
            seconds = round(time.monotonic() - started, 1)
            answers[case.name] = {"case": case.name, "ranks": case.ranks, **answer, "seconds": seconds}
            write_atomically(file, "".join(json.dumps(one) + "\n" for one in answers.values()))
        print(f"{number}/{len(cases)} {describe(answers[case.name])}{' (kept)' if kept else ''}", flush=True)
    failed = [case.name for case in cases if "error" in answers[case.name]]
    print(f"{len(cases) - len(failed)} of {len(cases)} cases in {file}; failed: {', '.join(failed) or 'none'}")
    return not failed


def describe(answer: Answer) -> str:
    """Return a line on an answer, or lines on an error."""
    head = f"{answer['case']}: {answer['seconds']:.0f} s"
    if "error" in answer:
        return "\n    ".join([f"{head}, failed:", *answer["error"]])
    return f"{head}, peak {answer['peak_gib']:.3f} GiB, reserved {answer['reserved_gib']:.3f} GiB"


def table(measured: Mapping[str, Answer], predicted: Mapping[str, Answer]) -> str:
    """Return a table of the cases with the errors of the predictions, and the largest differences in GiB."""
    errors, failed = ErrorTable("training", "ranks"), []
    differences: dict[str, list[float]] = {"peak_gib": [], "reserved_gib": []}
    for case in read_cases():
        sides = {"measured": measured.get(case.name), "predicted": predicted.get(case.name)}
        problems = [f"- {case.name}: not {side}" for side, one in sides.items() if not one or "error" in one]
        failed += problems
        if problems:
            continue
        before, after = measured[case.name], predicted[case.name]
        errors.add(case.name, case.ranks, measured=before, predicted=after)
        for quantity, values in differences.items():
            values.append(abs(after[quantity] - before[quantity]))
    peak, reserved = (max(values, default=0.0) for values in differences.values())
    largest = f"\nLargest difference: {peak:.3f} GiB of the peak, {reserved:.3f} GiB of reserved memory.\n"
    return "\n".join([errors.text() + largest, *failed]).rstrip() + "\n"


def compare() -> None:
    """Print and write the table of the stored measurements and predictions."""
    text = table(read_answers(EVIDENCE / "lone_loops.jsonl"), read_answers(EVIDENCE / "lone_loops_predicted.jsonl"))
    print(text)
    write_atomically(EVIDENCE / "lone_loops.md", text)


if __name__ == "__main__":
    if sys.argv[1:] == ["compare"]:
        compare()
        sys.exit()
    what, target, *names = sys.argv[1:]
    if what == "one":
        measure_one([*LONE_RANK, target, *names], timed_steps=0)
        sys.exit("the program ended before its third optimizer step")
    run = measure if what == "measure" else predict
    sys.exit(0 if answer_cases(Path(target), names, run) else 1)
