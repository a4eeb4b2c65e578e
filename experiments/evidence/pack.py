"""Convert a run's folder to the compact form that is stored here, and back.

    python -m experiments.evidence.pack results/RUN_ID TARGET             run.json, verdict.json, results.jsonl,
                                                                          telemetry/ROW.csv
    python -m experiments.evidence.pack --unpack EVIDENCE_FOLDER TARGET   a folder for each row, with its result.json

predictions.json is copied if it exists. Each line of results.jsonl is the result.json of one row, without spaces. The
compact form has no logs, notebooks and report. `testbed report` can write the report from both forms.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from experiments.errors import InputError
from experiments.results.run_folder import PREDICTIONS_FILE, RUN_FILE, RunFolder
from experiments.results.schema import RESULT_FILE, RESULTS_FILE, TELEMETRY_FILE, TELEMETRY_FOLDER

COPIED_FILES = (RUN_FILE, PREDICTIONS_FILE, "verdict.json")


def pack(folder: Path, target: Path) -> None:
    """Write the compact form of a run's folder to ``target``. Raises InputError if ``folder`` is not a run."""
    run = RunFolder(folder).read_run()
    found = [path for row in run.rows if (path := folder / run.suite / row / RESULT_FILE).exists()]
    _copy_run_files(folder, target)
    lines = [json.dumps(json.loads(path.read_text()), separators=(",", ":"), ensure_ascii=False) for path in found]
    (target / RESULTS_FILE).write_text("".join(f"{line}\n" for line in lines))
    for row in run.rows:
        _copy_file(folder / run.suite / row / TELEMETRY_FILE, target / TELEMETRY_FOLDER / f"{row}.csv")


def unpack(folder: Path, target: Path) -> None:
    """Write a compact run to ``target``, with a folder for each row. Raises InputError if ``folder`` is not a run."""
    suite = RunFolder(folder).read_run().suite
    _copy_run_files(folder, target)
    for line in (folder / RESULTS_FILE).read_text().splitlines():
        result = json.loads(line)
        row = target / suite / result["spec"]["row"]
        row.mkdir(parents=True, exist_ok=True)
        (row / RESULT_FILE).write_text(json.dumps(result, indent=1, ensure_ascii=False))
        _copy_file(folder / TELEMETRY_FOLDER / f"{row.name}.csv", row / TELEMETRY_FILE)


def _copy_run_files(folder: Path, target: Path) -> None:
    for name in COPIED_FILES:
        _copy_file(folder / name, target / name)


def _copy_file(source: Path, target: Path) -> None:
    """Copy a file if it exists."""
    if source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of a run, or a folder in compact form")
    parser.add_argument("target", type=Path, help="the folder to write")
    parser.add_argument("--unpack", action="store_true", help="convert the compact form to a run's folder")
    options = parser.parse_args(arguments)
    try:
        (unpack if options.unpack else pack)(options.folder, options.target)
    except InputError as problem:
        parser.error(str(problem))


if __name__ == "__main__":
    main()
