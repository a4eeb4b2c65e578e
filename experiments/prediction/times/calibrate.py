"""Measure the time of each operation of the suites on this machine's GPU.

    python -m experiments.prediction.times.calibrate --card CARD --out FILE < KEYS

Each line on standard input is the key of an operation. The file gets a line with the machine, then a line for each
operation, at once, so that an interrupted calibration goes on.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from experiments.prediction.times.operations import parse
from experiments.prediction.times.replay import NotReplayable, measure
from experiments.prediction.times.table import Machine, canonical, read_lines
from provision.hardware import local


def calibrate(keys: Iterable[str], out: Path, machine: Machine) -> None:
    """Measure the operations that ``out`` does not have; tell the progress on standard error."""
    known = {line["key"] for line in read_lines(out)[1:]} if out.exists() else set()
    trying = out.with_suffix(".trying")
    if trying.exists():
        with out.open("a") as file:
            file.write(json.dumps({"key": trying.read_text(), "problem": "the process died"}) + "\n")
        known.add(trying.read_text())
    missing = [key for key in dict.fromkeys(map(canonical, keys)) if key not in known]
    with out.open("a") as file:
        if not known:
            file.write(machine.model_dump_json() + "\n")
        for number, key in enumerate(missing, start=1):
            trying.write_text(key)
            file.write(json.dumps(_measured(key)) + "\n")
            trying.unlink()
            file.flush()
            print(f"\r{number} of {len(missing)} operations", end="", file=sys.stderr)
    print(file=sys.stderr)


def _measured(key: str) -> dict[str, object]:
    try:
        times = measure(parse(key))
    except (NotReplayable, torch.OutOfMemoryError) as problem:
        torch.cuda.empty_cache()
        return {"key": key, "problem": str(problem).splitlines()[0][:200]}
    return {"key": key, "device_s": float(f"{times.device_s:.4g}"), "host_s": float(f"{times.host_s:.4g}")}


def this_machine(card: str, command: str) -> Machine:
    """Describe this machine and its first GPU, which is the card ``card``."""
    return Machine(
        card=card,
        gpu=torch.cuda.get_device_name(),
        driver=torch.cuda.driver_version() if hasattr(torch.cuda, "driver_version") else "",
        host=local.this_machine().description,
        torch=torch.__version__,
        command=command,
        date=datetime.now(UTC).date().isoformat(),
    )


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="calibrate", description=__doc__)
    parser.add_argument("--card", required=True)
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args(words)
    calibrate((line.strip() for line in sys.stdin), options.out, this_machine(options.card, "calibrate"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
