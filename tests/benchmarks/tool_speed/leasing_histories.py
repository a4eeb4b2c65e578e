"""Run random sequences of leasing commands, and count how many of them it takes to find an injected fault.

    python -m tests.benchmarks.tool_speed.leasing_histories [--histories 10000] [--seed 0] [--out FILE]

Each history has up to 12 steps. The program ends at the first failing history, and prints it with the command that
repeats it. An injected fault must be found within 5 minutes of CPU time.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from time import process_time
from typing import Any, ClassVar

import pytest
from hypothesis import Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from experiments.results.provenance import git_commit
from experiments.system.files import write_atomically
from tests.provision.leasing.test_histories import SETTINGS
from tests.support.leasing.faults import INJECTED, Fault, without_delays
from tests.support.leasing.histories import Leasing

COMMAND = "python -m tests.benchmarks.tool_speed.leasing_histories"
FOUND_WITHIN_S = 5 * 60


class CountedLeasing(Leasing):
    """Counts histories, and how their commands ended."""

    count: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.count["histories"] += 1

    def command(self, plan, act):
        super().command(plan, act)
        self.count[f"commands: {self.ended}"] += 1


def histories(number: int, first_seed: int) -> dict[str, object]:
    """Run histories; return their number, CPU seconds, and how the commands in them ended."""
    CountedLeasing.count.clear()
    begun = process_time()
    chosen = settings(SETTINGS, max_examples=number, phases=[Phase.generate], derandomize=False)
    run_state_machine_as_test(seed(first_seed)(CountedLeasing), settings=chosen)
    return {"cpu_s": round(process_time() - begun, 1), **dict(sorted(CountedLeasing.count.items()))}


def histories_until_found(fault: Fault, first_seed: int) -> dict[str, object]:
    """Run histories with an injected fault until one fails; return their number, and the violated rule."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*fault)
        begun = process_time()
        try:
            histories(10_000, first_seed)
        except BaseException as problem:
            spent = process_time() - begun
            assert spent < FOUND_WITHIN_S, "found too late"
            reason = str(problem).partition("\n")[0] or type(problem).__name__
            return {"histories": CountedLeasing.count["histories"], "cpu_s": round(spent, 1), "violates": reason}
    raise AssertionError("not found")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--histories", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    without_delays(pytest.MonkeyPatch())
    facts: dict[str, Any] = {
        "command": f"{COMMAND} --histories {options.histories} --seed {options.seed}",
        "git_commit": git_commit(),
        "planted": {},
    }
    for name, fault in INJECTED.items():
        facts["planted"][name] = histories_until_found(fault, options.seed)
        print(f"{name}: {facts['planted'][name]}", flush=True)
    facts["without faults"] = histories(options.histories, options.seed)
    print(facts["without faults"], flush=True)
    if options.out:
        write_atomically(options.out, json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
