"""Measure the cases on the GPU of this machine, for compare.py and estimators.py.

    python -m tests.benchmarks.prediction.measure --out FOLDER [--only ID ...]

The worker runs the cases one after another in separate processes; the result of a case is FOLDER/cases/ID.json. A case
that fits or runs out of memory does not run again. A case that fails is also stored, with its log, and runs again next
time.
"""

import argparse
import shlex
import shutil
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

from experiments.errors import InputError, unknown_name_error
from experiments.results.schema import LOG_FILE, Result, read_result
from experiments.suites.row_spec import RowSpec
from experiments.system.files import write_atomically
from experiments.training.worker import run_row
from tests.benchmarks.prediction.cases import cases

CASES = "cases"
DONE = ("fits", "oom")


def selected_cases(only: list[str]) -> list[RowSpec]:
    """Return the cases with these ids, or all cases without ids. Raises InputError for an unknown id."""
    known = {case.row: case for case in cases()}
    for name in only:
        if name not in known:
            raise unknown_name_error("case", name, known)
    return [case for name, case in known.items() if not only or name in only]


def stored_result(path: Path, case: RowSpec) -> Result | None:
    """Return the stored result of exactly this case if it ended; None otherwise."""
    result = read_result(path) if path.exists() else None
    return result if result and result.outcome in DONE and result.fingerprint == case.fingerprint else None


def measure(case: RowSpec, folder: Path) -> str:
    """Run a case unless it has a stored result, store the result, and return a line about it."""
    path = folder / f"{case.row}.json"
    if before := stored_result(path, case):
        return result_line(before) + " (kept)"
    with tempfile.TemporaryDirectory() as place, redirect_stdout(None):
        try:
            result = run_row(case, Path(place), shlex.join(sys.orig_argv))
        except InputError as error:
            return f"{case.row}: rejected, {error}"
        if result.outcome not in DONE:
            shutil.copy(Path(place) / LOG_FILE, path.with_suffix(".log"))
    write_atomically(path, result.model_dump_json())
    return result_line(result)


def result_line(result: Result) -> str:
    """Return a line about a case: peak and reserved memory, seconds."""
    peak, reserved = (
        f"{gib:.2f}" if gib else "unknown" for gib in (result.memory.peak_gib, result.memory.reserved_gib)
    )
    failed = "" if result.outcome == "fits" else f", {result.outcome}: {result.reason}"
    return f"{result.spec.row}: peak {peak} GiB, reserved {reserved} GiB, {result.elapsed_s:.0f} s{failed}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--only", nargs="+", default=[], metavar="ID")
    options = parser.parse_args()
    folder = options.out / CASES
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for case in selected_cases(options.only):
            print(measure(case, folder), flush=True)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
