"""Measure the CPU seconds of the search for the earliest time slots in a large calendar.

    python -m tests.benchmarks.tool_speed.slot_search [--runs 5] [--out FILE]

2,000 nodes, 60 days, 100,000 reservations; the result is the median of the runs for each of several requests.
"""

import argparse
import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from time import process_time
from zoneinfo import ZoneInfo

from experiments.results.provenance import git_commit
from experiments.system.files import write_atomically
from provision.availability.search import HORIZON, earliest_slots
from provision.models import Booking, DailyWindow, Host, Requirements

NODES, TYPES, SITES, RESERVATIONS = 2_000, 20, ("CHI@UC", "CHI@TACC"), 100_000
NOW = datetime(2026, 11, 21, 12, 7, tzinfo=UTC)
LENGTH = timedelta(hours=3)


def hosts() -> list[Host]:
    """Return nodes of several types at two sites; each type has different GPUs."""
    return [
        Host(str(n), f"node-{n:04}", SITES[n % 2], f"type-{n // 2 % TYPES}", "A100", 4, 80.0, "NVLink", 16.0)
        for n in range(NODES)
    ]


def reservations() -> list[Booking]:
    """Return reservations of random nodes that begin on the hour; some overlap."""
    draw = random.Random(0)
    hours = int(HORIZON / timedelta(hours=1))
    starts = (NOW.replace(minute=0) + timedelta(hours=draw.randrange(hours)) for _ in range(RESERVATIONS))
    return [
        Booking(str(draw.randrange(NODES)), start, start + timedelta(hours=draw.randint(1, 72))) for start in starts
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    wishes = {
        "any node": Requirements(LENGTH),
        "16 nodes alike": Requirements(LENGTH, host_count=16),
        "50 nodes alike, 7 days": Requirements(timedelta(days=7), host_count=50),
        "in working hours": Requirements(LENGTH, hours=DailyWindow(9 * 60, 17 * 60, ZoneInfo("Europe/Helsinki"))),
        "one type": Requirements(LENGTH, node_type="type-7"),
    }
    nodes, calendar = hosts(), reservations()
    medians_s = {}
    for name, requirements in wishes.items():
        seconds = []
        for _ in range(options.runs):
            begin = process_time()
            found = earliest_slots(nodes, calendar, requirements, NOW)
            seconds.append(process_time() - begin)
        medians_s[name] = median(seconds)
        print(f"{name}: {len(found)} slots in {medians_s[name]:.2f} s")
    if options.out:
        facts = {
            "command": f"python -m tests.benchmarks.tool_speed.slot_search --runs {options.runs}",
            "git_commit": git_commit(),
            "nodes": NODES,
            "days": HORIZON.days,
            "reservations": RESERVATIONS,
            "median_cpu_s": medians_s,
        }
        write_atomically(options.out, json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
