"""Measure the start-up time of commands without computations: the median of ten starts of each.

python -m tests.benchmarks.tool_speed.startup

Python caches its compiled files in a temporary folder, because the environment may forbid it to cache them elsewhere.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time

from experiments.system.files import CODE_FOLDER

STARTS = 10
COMMANDS = (
    *("--help", "--version", "run --help", "predict --help", "reproduce --help"),
    *("list", "list single_gpu_blip2", "schema", "cards", "models", "check --template", "status"),
)


def start_s(command: str, environment: dict[str, str]) -> float:
    """Return the seconds of one start."""
    begun = time.perf_counter()
    arguments = [sys.executable, "-m", "experiments", *command.split()]
    subprocess.run(arguments, cwd=CODE_FOLDER, env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "TESTBED_LEDGER": f"{folder}/journal", "PYTHONPYCACHEPREFIX": f"{folder}/compiled"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for command in COMMANDS:
            start_s(command, environment)
            times_s = [start_s(command, environment) for _ in range(STARTS)]
            print(f"testbed {command:22} {statistics.median(times_s):.3f} s (fastest {min(times_s):.3f} s)")


if __name__ == "__main__":
    main()
