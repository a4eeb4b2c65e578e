"""Measure the start-up time of commands without computations: the median of ten starts of each.

python -m tests.benchmarks.startup
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time

from experiments.system.files import CODE

STARTS = 10
COMMANDS = ("--help", "--version", "run --help", "predict --help", "reproduce --help", "list", "schema", "status")


def start_s(command: str, environment: dict[str, str]) -> float:
    """Return the seconds of one start."""
    begun = time.perf_counter()
    arguments = [sys.executable, "-m", "experiments", *command.split()]
    subprocess.run(arguments, cwd=CODE, env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun


def main() -> None:
    with tempfile.TemporaryDirectory() as journal:
        environment = {**os.environ, "TESTBED_LEDGER": journal}
        for command in COMMANDS:
            times_s = [start_s(command, environment) for _ in range(STARTS)]
            print(f"testbed {command:18} {statistics.median(times_s):.3f} s (fastest {min(times_s):.3f} s)")


if __name__ == "__main__":
    main()
