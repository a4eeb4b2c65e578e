"""Write a table of the rows' samples per second in several runs of a suite: medians, and relative to the row as taught.

    python -m tests.benchmarks.training.rounds TABLE RUN... [--earlier FILE]

RUN: a run's folder, or its compact form; a run may have some of the rows only. --earlier: the .jsonl file of an earlier
call, whose speeds come first. A row whose title ends with "as taught" is the base of the rows after it. Writes a
Markdown table to TABLE, and the speeds of each run to a .jsonl file beside it.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from experiments.results.run_folder import RunFolder
from experiments.suites.suite import Suite
from experiments.system.files import write_atomically
from tests.benchmarks.prediction.tables import markdown

HEAD = ("row", "samples/s", "median", "times as taught", "of the peak rate")
FIELDS = ("samples_per_s", "step_s", "spread", "peak_share", "measured_micro_steps")

Speeds = dict[str, Any]


def speeds_of(folder: RunFolder) -> Iterator[Speeds]:
    """Yield the speed of each row of a run that fits."""
    started_at = folder.read_run().started_at
    for row, result in folder.results().items():
        if result.speed and result.outcome == "fits":
            yield {"row": row, "run_started_at": started_at} | result.speed.model_dump(include=set(FIELDS))


def table_lines(suite: Suite, speeds: Sequence[Speeds]) -> Iterator[list[str]]:
    """Yield a line of the table for each row of ``suite`` with ``speeds``."""
    base = None
    for row in suite.rows:
        found = [speed for speed in speeds if speed["row"] == row.id]
        rates = [speed["samples_per_s"] for speed in found]
        if row.title.endswith("as taught"):
            base = median(rates) if rates else None
        if not rates:
            continue
        shares = [speed["peak_share"] for speed in found if speed["peak_share"] is not None]
        yield [
            row.id,
            ", ".join(f"{rate:.1f}" for rate in rates),
            f"{median(rates):.1f}",
            f"{median(rates) / base:.2f}" if base else "",
            f"{median(shares):.1%}" if shares else "",
        ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("table", type=Path, metavar="TABLE", help="Markdown file to write")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--earlier", type=Path, metavar="FILE", help="speeds that an earlier call has written")
    options = parser.parse_args(arguments)
    earlier = options.earlier.read_text().splitlines() if options.earlier else []
    speeds: list[Speeds] = [json.loads(line) for line in earlier]
    for path in options.runs:
        speeds += speeds_of(RunFolder(path))
    text = markdown(HEAD, list(table_lines(RunFolder(options.runs[0]).suite(), speeds)))
    write_atomically(options.table, text)
    write_atomically(options.table.with_suffix(".jsonl"), "".join(json.dumps(one) + "\n" for one in speeds))
    print(text)


if __name__ == "__main__":
    main()
