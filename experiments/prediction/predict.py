"""Predict rows: read each prediction from the cache, or trace the row on a simulated GPU in a separate process."""

import functools
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from experiments.errors import InputError
from experiments.prediction.times.host import time_file_hashes
from experiments.results.predictions import Prediction
from experiments.results.provenance import code_sha256
from experiments.suites.attention_kernels import group_by_kernels
from experiments.suites.cards import card_named
from experiments.suites.choices import Input
from experiments.suites.models import Model
from experiments.suites.row_spec import RowSpec
from experiments.suites.settings import Settings
from experiments.suites.suite import Row, Suite
from experiments.system.files import CODE_FOLDER, write_to_cache
from experiments.system.processes import process_group
from provision.files import read_bytes
from provision.temporary import TemporaryFolder

PREDICTION_FOLDER = Path(__file__).parent
LIBRARIES = ("torch", "transformers", "lightning", "peft", "bitsandbytes", "deepspeed", "litgpt", "accelerate")

CUSTOM_SUITE = "question"
"""Stands in place of a suite's name in the specification of a custom training, which belongs to no suite."""

OnPrediction = Callable[[RowSpec, Prediction, bool], None]
"""Callback that gets a row, its prediction, and whether the prediction was cached."""
TraceError = InputError | RuntimeError
OnFailure = Callable[[RowSpec, TraceError], None]
"""Callback that gets a row that cannot be traced, and the reason."""


def suite_row_spec(suite: Suite, row: Row, card: str, input: Input = "as-taught") -> RowSpec:
    """Return the specification with which the tracer runs a row of a suite."""
    settings = suite.settings(row, card)
    return peak_spec(suite.suite, row.id, card, settings, suite.version, input, suite.model_in_suite(settings))


def peak_spec(
    suite: str,
    row: str,
    card: str,
    settings: Settings,
    recipe_version: int = 1,
    input: Input = "as-taught",
    model: Model | None = None,
) -> RowSpec:
    """Return a row specification at full size, for the two optimizer steps that reach the memory peak.

    model: base model that the catalog does not have; None: the model of ``settings``.
    """
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


def row_label(spec: RowSpec) -> str:
    """Return the name of the row in messages: SUITE/ROW, or only ROW for a custom training."""
    return spec.row if spec.suite == CUSTOM_SUITE else f"{spec.suite}/{spec.row}"


def predict(
    specs: Sequence[RowSpec],
    cache: Path,
    on_prediction: OnPrediction = lambda spec, prediction, cached: None,
    on_failure: OnFailure | None = None,
    workers: int | None = None,
    store: Path | None = None,
    rank: int = 0,
) -> list[Prediction]:
    """Return predictions in the order of ``specs``; call ``on_prediction`` for each.

    Predictions are cached under ``cache``, or in the folder ``store``. The key of the cache contains everything that a
    prediction depends on: row, rank, card, code, libraries, measured times. The folder has the limits of
    ``write_to_cache``.

    Rows that differ only in the card are traced once if the cards have the same kernels. At most ``workers`` rows
    (None: the number of CPUs) are traced at a time, and no more than fit into the memory that is free; a row of the
    labs needs less than 6 GiB of host memory. For a row that cannot be traced, ``on_failure`` is called with the reason
    and the row is omitted. Without ``on_failure``, the first row that cannot be traced raises InputError (user error)
    or RuntimeError. Raises InputError if no row can be traced on this machine.

    rank: the rank that is traced, from 0. All rows must have this rank.
    """
    folder = store or cache / "predictions"
    folder.mkdir(parents=True, exist_ok=True)
    predictions: dict[str, Prediction] = {}
    missing: dict[str, RowSpec] = {}
    traced_specs = {id(spec): group[0] for group in _group_by_kernels(specs) for spec in group}
    shared = [code_sha256(), _prediction_code_sha256(), *_library_versions(), *time_file_hashes()]
    keys = [_cache_key(spec, traced_specs[id(spec)], rank, shared) for spec in specs]
    for key, spec in zip(keys, specs, strict=True):
        if key in predictions or key in missing:
            continue
        if cached := _read_cached(folder / f"{key}.json"):
            predictions[key] = cached
            on_prediction(spec, cached, True)
        else:
            missing[key] = spec
    for key, prediction in _trace_rows(missing, cache, workers or os.cpu_count() or 1, rank):
        if not isinstance(prediction, Prediction):
            if on_failure is None:
                raise prediction
            on_failure(missing[key], prediction)
            continue
        write_to_cache(folder / f"{key}.json", prediction.model_dump_json())
        predictions[key] = prediction
        on_prediction(missing[key], prediction, False)
    return [predictions[key] for key in keys if key in predictions]


def _group_by_kernels(specs: Iterable[RowSpec]) -> list[list[RowSpec]]:
    """Return the rows in groups; one trace, on the card of the first row, predicts all rows of a group."""
    rows: dict[str, list[RowSpec]] = {}
    for spec in specs:
        rows.setdefault(spec.model_copy(update={"card": ""}).fingerprint, []).append(spec)
    return [
        [spec for name in group for spec in same if spec.card == name]
        for same in rows.values()
        for group in group_by_kernels(list(dict.fromkeys(spec.card for spec in same)))
    ]


def _cache_key(spec: RowSpec, traced_spec: RowSpec, rank: int, shared: Sequence[str]) -> str:
    """Return the cache key of a row. traced_spec: the row on the card of the trace. shared: what all keys contain."""
    traced_multiprocessors = str(card_named(traced_spec.card).multiprocessors)
    row = [spec.fingerprint, card_named(spec.card).model_dump_json(), traced_multiprocessors]
    parts = [*row, str(rank), *shared]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


@functools.cache
def _prediction_code_sha256() -> str:
    """Return the SHA-256 of the code of predictions, without tables of times. A process reads it once."""
    files = [
        PREDICTION_FOLDER / "tracer.py",
        PREDICTION_FOLDER / "peak.py",
        PREDICTION_FOLDER.parent / "results" / "predictions.py",
        *sorted(path for end in ("py", "h", "cpp") for path in (PREDICTION_FOLDER / "phantom").rglob(f"*.{end}")),
        *sorted((PREDICTION_FOLDER / "times").glob("*.py")),
    ]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _library_versions() -> tuple[str, ...]:
    library_versions = []
    for name in LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            library_versions.append(f"{name} {importlib.metadata.version(name)}")
    return tuple(library_versions)


def _read_cached(path: Path) -> Prediction | None:
    """Return the cached prediction; None if the file is missing or cannot be read."""
    try:
        return Prediction.model_validate_json(read_bytes(path))
    except (OSError, ValidationError):
        return None


def trace_operations(specs: Sequence[RowSpec], cache: Path) -> list[str]:
    """Return the keys of the operations whose times determine the predicted step times of the rows; each key once.

    Rows that cannot be traced are left out. Raises InputError if no row can be traced on this machine.
    """
    with TemporaryFolder("trace") as folder:
        groups = _group_by_kernels(specs)
        jobs = [
            _write_job(folder, number, group[:1]) | {"keys": f"{folder}/{number}.keys"}
            for number, group in enumerate(groups)
        ]
        with (folder / "log.txt").open("w+") as log, _run_tracer(cache, os.cpu_count() or 1, jobs, log.fileno()) as run:
            _check_exit_code(run.wait(), log)
        lines = (line for path in sorted(folder.glob("*.keys")) for line in path.read_text().splitlines())
        return list(dict.fromkeys(lines))


def _check_exit_code(code: int, log: IO[str]) -> None:
    """Raise the error in the last line of the log, unless the exit code of the tracer is 0."""
    if code:
        log.seek(0)
        message = (log.read().strip().splitlines() or ["the tracer ended without output"])[-1]
        raise InputError(message) if code == 2 else RuntimeError(f"the tracer failed: {message}")


def _trace_rows(
    missing: dict[str, RowSpec], cache: Path, workers: int, rank: int
) -> Iterator[tuple[str, Prediction | TraceError]]:
    """Yield each key with its prediction or error, as soon as the tracer has written it."""
    if not missing:
        return
    with TemporaryFolder("trace") as folder:
        groups = _group_by_kernels(missing.values())
        keys = {id(spec): key for key, spec in missing.items()}
        jobs = [_write_job(folder, number, group) | {"rank": rank} for number, group in enumerate(groups)]
        with (folder / "log.txt").open("w+") as log, _run_tracer(cache, workers, jobs, log.fileno()) as tracer:
            assert tracer.stdout is not None
            for line in tracer.stdout:
                number = int(line)
                predictions = _read_predictions(folder / f"{number}.json", groups[number])
                yield from zip((keys[id(spec)] for spec in groups[number]), predictions, strict=True)
            _check_exit_code(tracer.wait(), log)


def _write_job(folder: Path, number: int, group: Sequence[RowSpec]) -> dict[str, Any]:
    """Write the specification of rows that differ only in the card; return the job of the tracer."""
    spec = folder / f"{number}.spec.json"
    spec.write_text(group[0].model_dump_json())
    return {"spec": str(spec), "cards": [one.card for one in group], "out": str(folder / f"{number}.json")}


@contextmanager
def _run_tracer(cache: Path, workers: int, jobs: list[dict[str, Any]], log: int) -> "Iterator[subprocess.Popen[str]]":
    """Start the tracer with its jobs; kill it and its forks when the with block ends."""
    command = [sys.executable, "-m", "experiments.prediction.tracer", "--cache", str(cache), "--workers", str(workers)]
    with process_group(
        command, cwd=CODE_FOLDER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
    ) as tracer:
        assert tracer.stdin is not None
        tracer.stdin.write("".join(json.dumps(job) + "\n" for job in jobs))
        tracer.stdin.close()
        yield tracer


def _read_predictions(out: Path, group: Sequence[RowSpec]) -> Sequence[Prediction | TraceError]:
    """Return the predictions of rows that were traced together, or an error for each row if tracing failed."""
    try:
        text = out.read_text()
    except FileNotFoundError:
        killed = "the tracer was killed, probably because the host ran out of memory"
        return [RuntimeError(f"{row_label(spec)} on {spec.card}: {killed}") for spec in group]
    content = json.loads(text)
    if isinstance(content, list):
        return [Prediction.model_validate_json(json.dumps(prediction)) for prediction in content]
    return [_build_error(f"{row_label(spec)} on {spec.card}", **content) for spec in group]


def _build_error(row: str, error: str, user_error: bool) -> TraceError:
    return InputError(f"{row}: {error}") if user_error else RuntimeError(f"{row}: cannot be traced ({error})")
