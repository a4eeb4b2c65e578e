"""Predict and evaluate the stored runs again, after the code of predictions or evaluation has changed.

    python -m experiments.evidence.renew [--keep-predictions] [NAME...]

NAME: the folder of a stored run; default: all. If a run has predictions, they are replaced by new predictions for all
rows of its suite. If such a run has no results, its date and commit become those of today. Each of the runs gets new
verdicts.
"""

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from experiments.prediction.service import predict_rows
from experiments.report.write import reevaluate
from experiments.results.provenance import git_commit
from experiments.results.run_folder import PREDICTIONS_FILE, VERDICT_FILE, RunFolder, run_folders
from experiments.runners.progress import View
from experiments.system.files import write_atomically

EVIDENCE = Path(__file__).parent


def predict_again(folder: RunFolder, view: View) -> None:
    """Replace the predictions of a stored run with predictions of the current code."""
    run, suite = folder.read_run(), folder.suite()
    if not folder.results():
        now = datetime.now(UTC).isoformat(timespec="seconds")
        rows = tuple(row.id for row in suite.rows_for(run.card))
        run = run.model_copy(update={"rows": rows, "started_at": now, "git_commit": git_commit()})
        folder.write_run(run)
    predict_rows(suite, run, folder, view)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    known = {folder.path.name: folder for folder in run_folders(EVIDENCE)}
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="folder of a stored run; default: all")
    parser.add_argument("--keep-predictions", action="store_true", help="evaluate without new predictions")
    options = parser.parse_args(arguments)
    names = options.names or list(known)
    if unknown := sorted(set(names) - known.keys()):
        parser.error(f"unknown run: {', '.join(unknown)}; stored: {', '.join(known)}")
    view = View(Console(highlight=False))
    for name in names:
        folder = known[name]
        if not options.keep_predictions and (folder.path / PREDICTIONS_FILE).is_file():
            predict_again(folder, view)
        (found,) = reevaluate(folder.path)
        write_atomically(folder.path / VERDICT_FILE, found.evaluation.model_dump_json(indent=2))
        view.print_line(f"{name}: {len(found.changes)} changed verdict(s)")


if __name__ == "__main__":
    main()
