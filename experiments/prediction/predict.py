"""Predict rows: from the cache if nothing has changed, otherwise by parallel dry runs in separate processes."""

import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache as once
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from experiments.errors import InputError
from experiments.results.predictions import Prediction
from experiments.results.provenance import code_sha256
from experiments.suites.attention_kernels import group_by_kernels
from experiments.suites.cards import card_named
from experiments.suites.choices import Input
from experiments.suites.models import Model
from experiments.suites.row_spec import RowSpec
from experiments.suites.settings import Settings
from experiments.suites.suite import Row, Suite
from experiments.system.files import CODE, write_atomically
from experiments.system.processes import own_group

HERE = Path(__file__).parent
LIBRARIES = ("torch", "transformers", "lightning", "peft", "bitsandbytes", "deepspeed", "litgpt", "accelerate")

CUSTOM = "question"
"""Suite of the rows of custom trainings."""

Watch = Callable[[RowSpec, Prediction, bool], None]
Problem = InputError | RuntimeError
Failed = Callable[[RowSpec, Problem], None]


def traced_spec(suite: Suite, row: Row, card: str, input: Input = "as-taught") -> RowSpec:
    """Return the row of a suite as the tracer runs it."""
    settings = suite.settings(row, card)
    return peak_spec(suite.suite, row.id, card, settings, suite.version, input, suite.own_model(settings))


def peak_spec(
    suite: str,
    row: str,
    card: str,
    settings: Settings,
    recipe_version: int = 1,
    input: Input = "as-taught",
    model: Model | None = None,
) -> RowSpec:
    """Return the row at full size, for the two optimizer steps that reach the memory peak."""
    return RowSpec(
        suite=suite,
        recipe_version=recipe_version,
        row=row,
        card=card,
        size="full",
        length="peak",
        weights="random",
        data="synthetic",
        input=input,
        settings=settings,
        model=model,
    )


def place_of(spec: RowSpec) -> str:
    """Return the row's name in messages, with its suite if it has one."""
    return spec.row if spec.suite == CUSTOM else f"{spec.suite}/{spec.row}"


def predict(
    specs: Sequence[RowSpec],
    cache: Path,
    watch: Watch = lambda spec, prediction, cached: None,
    failed: Failed | None = None,
    workers: int | None = None,
) -> list[Prediction]:
    """Return predictions in the order of ``specs``; call ``watch`` for each, with whether it was cached.

    Predictions are cached under ``cache``; the key contains everything that they depend on: row, card, code,
    libraries. Rows that differ by card only, with the same kernels, are traced once. At most ``workers`` rows (None:
    the number of CPUs) are traced at a time, each with less than 6 GiB of memory. If a row cannot be traced,
    ``failed`` is called with the reason and the row is omitted. Without ``failed``, the first such row raises
    InputError (user error) or RuntimeError. Raises InputError if no row can be traced on this machine.
    """
    folder = cache / "predictions"
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Prediction] = {}
    missing: dict[str, RowSpec] = {}
    first = {id(spec): group[0] for group in _groups(specs) for spec in group}
    keys = [_key(spec, first[id(spec)]) for spec in specs]
    for key, spec in zip(keys, specs, strict=True):
        if key in found or key in missing:
            continue
        if kept := _kept(folder / f"{key}.json"):
            found[key] = kept
            watch(spec, kept, True)
        else:
            missing[key] = spec
    for key, prediction in _traced(missing, cache, workers or os.cpu_count() or 1):
        if not isinstance(prediction, Prediction):
            if failed is None:
                raise prediction
            failed(missing[key], prediction)
            continue
        write_atomically(folder / f"{key}.json", prediction.model_dump_json())
        found[key] = prediction
        watch(missing[key], prediction, False)
    return [found[key] for key in keys if key in found]


def _groups(specs: Iterable[RowSpec]) -> list[list[RowSpec]]:
    """Return the rows in groups that one trace answers, for its first row's card."""
    rows: dict[str, list[RowSpec]] = {}
    for spec in specs:
        rows.setdefault(spec.model_copy(update={"card": ""}).fingerprint, []).append(spec)
    return [
        [spec for name in group for spec in same if spec.card == name]
        for same in rows.values()
        for group in group_by_kernels(list(dict.fromkeys(spec.card for spec in same)))
    ]


def _key(spec: RowSpec, traced: RowSpec) -> str:
    """Return the key of a row that is traced on the card of ``traced``, which may have more multiprocessors."""
    card, shared = card_named(spec.card).model_dump_json(), str(card_named(traced.card).multiprocessors)
    parts = [spec.fingerprint, card, shared, code_sha256(), _own_code(), *_libraries()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


@once
def _own_code() -> str:
    files = [
        HERE / "tracer.py",
        HERE / "peak.py",
        HERE.parent / "results" / "predictions.py",
        *sorted((HERE / "phantom").glob("*.*")),
    ]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


@once
def _libraries() -> tuple[str, ...]:
    found = []
    for name in LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    return tuple(found)


def _kept(path: Path) -> Prediction | None:
    """Return the cached prediction; None if there is none or it cannot be read."""
    try:
        return Prediction.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _traced(missing: dict[str, RowSpec], cache: Path, workers: int) -> Iterator[tuple[str, Prediction | Problem]]:
    """Yield each key with its prediction, or with the problem, as soon as the tracer writes it."""
    if not missing:
        return
    with tempfile.TemporaryDirectory(prefix="testbed-trace-") as place:
        folder, groups = Path(place), _groups(missing.values())
        keys = {id(spec): key for key, spec in missing.items()}
        jobs = []
        for number, group in enumerate(groups):
            (folder / f"{number}.spec.json").write_text(group[0].model_dump_json())
            cards = [spec.card for spec in group]
            jobs.append({"spec": f"{folder}/{number}.spec.json", "cards": cards, "out": f"{folder}/{number}.json"})
        with (folder / "log.txt").open("w+") as log, _tracer(cache, workers, jobs, log.fileno()) as tracer:
            assert tracer.stdout is not None
            for line in tracer.stdout:
                number = int(line)
                found = _read(folder / f"{number}.json", groups[number])
                yield from zip((keys[id(spec)] for spec in groups[number]), found, strict=True)
            if code := tracer.wait():
                log.seek(0)
                said = (log.read().strip().splitlines() or ["the tracer ended without output"])[-1]
                raise InputError(said) if code == 2 else RuntimeError(f"the tracer failed: {said}")


@contextmanager
def _tracer(cache: Path, workers: int, jobs: list[dict[str, Any]], log: int) -> "Iterator[subprocess.Popen[str]]":
    """Start the tracer with its jobs; it ends with all its forks if the body ends early."""
    command = [sys.executable, "-m", "experiments.prediction.tracer", "--cache", str(cache), "--workers", str(workers)]
    with own_group(command, cwd=CODE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True) as tracer:
        assert tracer.stdin is not None
        tracer.stdin.write("".join(json.dumps(job) + "\n" for job in jobs))
        tracer.stdin.close()
        yield tracer


def _read(out: Path, group: Sequence[RowSpec]) -> Sequence[Prediction | Problem]:
    """Return the tracer's predictions of rows that were traced together, or for each why it cannot be traced."""
    try:
        text = out.read_text()
    except FileNotFoundError:
        killed = "the tracer was killed, probably because the host ran out of memory"
        return [RuntimeError(f"{place_of(spec)} on {spec.card}: {killed}") for spec in group]
    said = json.loads(text)
    if isinstance(said, list):
        return [Prediction.model_validate_json(json.dumps(one)) for one in said]
    return [_problem(f"{place_of(spec)} on {spec.card}", **said) for spec in group]


def _problem(where: str, error: str, mistake: bool) -> Problem:
    return InputError(f"{where}: {error}") if mistake else RuntimeError(f"{where}: cannot be traced ({error})")
