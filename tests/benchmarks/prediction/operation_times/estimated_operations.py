"""Measure the error of times that are estimated from the times of similar operations.

    python -m tests.benchmarks.prediction.operation_times.estimated_operations [FOLDER]

The times of most operations of scripts are estimated in this way. The operations in the table of the H100
are divided into ten parts. The times of each part are estimated from the other parts, and compared with the measured
times. Operations below 20 microseconds are left out, because most of their time is the start of a kernel. Operations
for which the GPU waited for the host during the measurement are left out, too. Writes estimated_operations.md and .json
into FOLDER (default: experiments/evidence/prediction_h100).
"""

import argparse
import random
from collections import defaultdict
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

from experiments.prediction.times.operations import Family, parse
from experiments.prediction.times.step import SCALED_CARD, table_for_card
from experiments.prediction.times.table import Table, waited_for_host
from tests.benchmarks.prediction.tables import EVIDENCE, markdown, percent, relative_error, write

PARTS, SHORTEST_S = 10, 20e-6
HEAD = ["operations", "number", "median error", "mean error", "error of their sum"]


class Estimated(NamedTuple):
    """Measured and estimated seconds of an operation on the GPU."""

    family: Family
    measured_s: float
    estimated_s: float


def estimate_all(table: Table) -> list[Estimated]:
    """Return every operation with its estimate from the parts that do not contain it."""
    keys, found = list(table.measured), []
    random.Random(0).shuffle(keys)
    for part in range(PARTS):
        own = dict.fromkeys(keys[part::PARTS])
        others = Table(table.machine, {key: table.measured[key] for key in keys if key not in own})
        found += [
            Estimated(parse(key).family, table.measured[key].device_s, others.times(key, table.card).device_s)
            for key in own
            if not waited_for_host(parse(key), table.measured[key])
        ]
    return [one for one in found if one.measured_s >= SHORTEST_S]


def errors(found: list[Estimated]) -> dict[str, Any]:
    """Return the errors of the estimates, relative to the measurements."""
    each = [abs(relative_error(one.estimated_s, one.measured_s)) for one in found]
    total = relative_error(sum(one.estimated_s for one in found), sum(one.measured_s for one in found))
    return {"number": len(found), "median": median(each), "mean": fmean(each), "sum": total}


def main() -> None:
    """Compare all operations and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=EVIDENCE.parent / "prediction_h100")
    folder = parser.parse_args().folder
    families: dict[str, list[Estimated]] = defaultdict(list)
    for one in estimate_all(table_for_card(SCALED_CARD)):
        families[one.family].append(one)
    data = {name: errors(own) for name, own in sorted(families.items())}
    data["all"] = errors([one for own in families.values() for one in own])
    lines = [
        [name, one["number"], *(percent(one[value]).lstrip("+") for value in ("median", "mean")), percent(one["sum"])]
        for name, one in data.items()
    ]
    write(folder, "estimated_operations", markdown(HEAD, lines), data)


if __name__ == "__main__":
    main()
