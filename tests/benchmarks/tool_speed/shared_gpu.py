"""Compare a run whose rows shared a GPU with a run of the same rows, each with the GPU to itself.

    python -m tests.benchmarks.tool_speed.shared_gpu FILE UNSHARED SHARED

UNSHARED, SHARED: folders of runs, the second one of `testbed run --share-gpus`. Writes seconds, outcomes and the
largest difference of the peaks into FILE. The seconds of a run begin with its record and end with its last row.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from experiments.results.run_folder import RunFolder
from experiments.results.schema import Result
from experiments.system.files import write_atomically


def wall_s(folder: RunFolder) -> float:
    """Return the seconds from the beginning of a run to the end of its last row."""
    began = datetime.fromisoformat(folder.read_run().started_at).timestamp()
    ends = (datetime.fromisoformat(one.started_at).timestamp() + one.elapsed_s for one in folder.results().values())
    return max(ends) - began


def largest_peak_difference_gib(one: Mapping[str, Result], other: Mapping[str, Result]) -> float:
    """Return the largest difference between the peaks of the rows of ``one``, which ``other`` has too."""
    return max(abs((one[row].memory.peak_gib or 0.0) - (other[row].memory.peak_gib or 0.0)) for row in one)


def comparison(unshared: RunFolder, shared: RunFolder) -> dict[str, Any]:
    """Return the comparison of two runs of the same rows."""
    alone, together = unshared.results(), shared.results()
    assert alone.keys() == together.keys(), "both runs have the same rows"
    walls = wall_s(unshared), wall_s(shared)
    return {
        "commands": [folder.read_run().command for folder in (unshared, shared)],
        "on": shared.read_run().host,
        "rows": list(alone),
        "seconds": walls,
        "times_as_fast": walls[0] / walls[1],
        "equal_outcomes": all(alone[row].outcome == together[row].outcome for row in alone),
        "equal_losses": all(alone[row].losses[: len(one.losses)] == one.losses for row, one in together.items()),
        "largest_peak_difference_gib": largest_peak_difference_gib(alone, together),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, metavar="FILE", help="file to write")
    parser.add_argument("runs", type=Path, nargs=2, metavar="RUN", help="the unshared and the shared run")
    options = parser.parse_args(arguments)
    unshared, shared = map(RunFolder, options.runs)
    text = json.dumps(comparison(unshared, shared), indent=1)
    write_atomically(options.file, f"{text}\n")
    print(text)


if __name__ == "__main__":
    main()
