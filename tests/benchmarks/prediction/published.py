"""Compare memory that others measured and published with the predictions of `testbed predict` for the same settings.

    python -m tests.benchmarks.prediction.published [WORD]   without a GPU

Cases are in experiments/evidence/prediction_published/cases.yaml. Predicts the cases whose id contains WORD, stores the
predictions in predicted.jsonl in the same folder, and writes published.md from all stored predictions.
"""

import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from experiments.suites.yaml_schema import read_yaml
from experiments.system.files import CODE_FOLDER

FOLDER = CODE_FOLDER / "experiments" / "evidence" / "prediction_published"
SCRIPTS = Path(__file__).parent / "scripts"
LARGE = 0.10
"""Errors above this one are listed with what cases.yaml says about the setting."""


class Case(BaseModel):
    """A published peak, GiB. command: the arguments of `testbed predict`; unknown: what the source does not state."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: str
    source: str
    setting: str
    card: str
    metric: Literal["allocated", "reserved"]
    figure_gib: float
    command: str
    unknown: str = ""


class PublishedPrediction(BaseModel):
    """The prediction of a case, GiB. problem: the last line of output if it failed."""

    id: str
    model: str = ""
    loop: str = ""
    peak_gib: float | None = None
    reserved_gib: float | None = None
    outcome: str = ""
    problem: str = ""


def cases() -> list[Case]:
    """Return the cases in the order of their file."""
    return [Case.model_validate(one) for one in read_yaml(FOLDER / "cases.yaml")]


def predict_case(case: Case) -> PublishedPrediction:
    """Predict a case with the program's own command line."""
    options, dashes, script = case.command.partition("-- ")
    words = [*shlex.split(options), "--card", case.card, "--json"]
    if dashes:
        words += ["--", *(str(SCRIPTS / word) if word.endswith(".py") else word for word in shlex.split(script))]
    ran = subprocess.run(
        [sys.executable, "-m", "experiments", "predict", *words],
        cwd=FOLDER / "configs",
        env={**os.environ, "PYTHONPATH": str(CODE_FOLDER)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        return PublishedPrediction(id=case.id, problem=ran.stderr.strip().splitlines()[-1])
    found = json.loads(ran.stdout)
    one: dict[str, Any] = found["predictions"][0]
    return PublishedPrediction(
        id=case.id,
        model=one["model"],
        loop=found.get("loop", "script"),
        peak_gib=one["peak_gib"],
        reserved_gib=one["reserved_gib"],
        outcome=one["cards"][0]["outcome"],
    )


def relative_error(case: Case, answer: PublishedPrediction) -> float | None:
    """Return the prediction's relative error; None if the case could not be predicted."""
    size = answer.peak_gib if case.metric == "allocated" else answer.reserved_gib
    return None if size is None else size / case.figure_gib - 1


def table(known: Sequence[Case], answers: dict[str, PublishedPrediction]) -> str:
    """Return a table of all cases that have an answer, the summary, the deviations and the sources."""
    own = [(case, answers[case.id]) for case in known if case.id in answers]
    lines = ["| case | setting | metric | printed | predicted | error | class built | loop |", "|---|" + "---|" * 7]
    lines += [_table_row(case, answer) for case, answer in own]
    for title, chosen in (
        ("settings that are fully known", [both for both in own if not both[0].unknown]),
        ("other settings", [both for both in own if both[0].unknown]),
    ):
        sizes = [abs(size) for case, answer in chosen if (size := relative_error(case, answer)) is not None]
        if sizes:
            median, worst = statistics.median(sizes), max(sizes)
            lines += ["", f"{title}: median {median:.1%}, worst {worst:.1%} of {len(sizes)} cases"]
    false = [case.id for case, answer in own if answer.outcome == "oom"]
    lines += ["", f"predicted out of memory on the card that ran it: {', '.join(false) or 'none'}"]
    lines += ["", "## Deviations above 10 %, and what is not known of a setting", ""]
    lines += [
        f"- {case.id}: {case.unknown or 'no reason is known'}"
        for case, answer in own
        if case.unknown or _has_large_error(case, answer)
    ]
    lines += ["", "## Sources", ""]
    sources: dict[str, list[str]] = {}
    for case, _ in own:
        sources.setdefault(case.source, []).append(case.id)
    lines += [f"- {source}: {', '.join(ids)}" for source, ids in sources.items()]
    return "\n".join(lines) + "\n"


def _table_row(case: Case, answer: PublishedPrediction) -> str:
    size = relative_error(case, answer)
    numbers = f"{answer.problem} |" if size is None else f"{case.figure_gib * (1 + size):.2f} | {size:+.1%}"
    return (
        f"| {case.id} | {case.setting} | {case.metric} | {case.figure_gib:.2f} | {numbers} | {answer.model} "
        f"| {answer.loop} |"
    )


def _has_large_error(case: Case, answer: PublishedPrediction) -> bool:
    size = relative_error(case, answer)
    return size is None or abs(size) > LARGE


def main(word: str = "") -> None:
    """Predict the cases that contain ``word``; write predicted.jsonl and published.md."""
    file, known = FOLDER / "predicted.jsonl", cases()
    lines = file.read_text().splitlines() if file.exists() else []
    answers = {one.id: one for one in map(PublishedPrediction.model_validate_json, lines)}
    for case in (case for case in known if word in case.id):
        answers[case.id] = predict_case(case)
        print(_table_row(case, answers[case.id]), flush=True)
        kept = (answers[one.id].model_dump_json(exclude_defaults=True) for one in known if one.id in answers)
        file.write_text("\n".join(kept) + "\n")
        (FOLDER / "published.md").write_text(table(known, answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
