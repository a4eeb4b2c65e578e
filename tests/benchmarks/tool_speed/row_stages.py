"""Write the seconds of the stages of a run's rows, and the seconds between rows that follow each other on one GPU.

    python -m tests.benchmarks.tool_speed.row_stages FILE RUN STORED

RUN: the folder of a run whose rows ran one after another. STORED: an earlier run of the same rows, in any form; its
outcomes and peaks are compared with those of RUN. The GPU seconds of the rows as taught are computed (see run_length).
"""

import argparse
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from experiments.results.run_folder import RunFolder
from experiments.results.schema import Result
from experiments.system.files import write_atomically
from tests.benchmarks.tool_speed.run_length import as_taught_gpu_s
from tests.benchmarks.tool_speed.shared_gpu import largest_peak_difference_gib, wall_s


def began(result: Result) -> float:
    """Return when the row began, seconds since the epoch."""
    assert result.timestamps is not None
    assert result.times is not None
    return result.timestamps.started_at - result.times.start_s


def stages_of(folder: RunFolder, stored: RunFolder) -> dict[str, Any]:
    """Return the record of a run that is compared with ``stored``."""
    results = dict(sorted(folder.results().items(), key=lambda item: began(item[1])))
    before = stored.results()
    gaps = [began(after) - began(one) - one.elapsed_s for one, after in pairwise(results.values())]
    stages = {row: one.times.model_dump() for row, one in results.items() if one.times}
    return {
        "command": folder.read_run().command,
        "on": folder.read_run().host,
        "code": next(iter(results.values())).code,
        "seconds": wall_s(folder),
        "gpu_s": sum(one.gpu_s or 0.0 for one in results.values()),
        "as_taught_gpu_s": sum(map(as_taught_gpu_s, results.values())),
        "between_rows_s": median(gaps),
        "outside_training_s": median(one["start_s"] + one["build_s"] + one["end_s"] for one in stages.values()),
        "outcomes_differ": [row for row, one in results.items() if one.outcome != before[row].outcome],
        "largest_peak_difference_gib": largest_peak_difference_gib(results, before),
        "rows": stages,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, metavar="FILE", help="file to write")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("stored", type=Path, metavar="STORED", help="run to compare with")
    options = parser.parse_args(arguments)
    text = json.dumps(stages_of(RunFolder(options.run), RunFolder(options.stored)), indent=1)
    write_atomically(options.file, f"{text}\n")
    print(text)


if __name__ == "__main__":
    main()
