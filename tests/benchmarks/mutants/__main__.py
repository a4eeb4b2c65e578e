"""Measure how many faults the tests find: change the code in random places, one at a time, and run the tests.

    python -m tests.benchmarks.mutants [--sample 150] [--seed 1] [--limit-s 300] [--at-most N] [--again] [--out FILE]

mutants.toml names the modules and their tests. The program works in a copy of the checkout in the cache, and continues
an interrupted sample of the same code. A mutant is found if a test fails or does not end within the limit; otherwise it
survives. FILE gets the numbers and each survivor, with its reason from equivalent_mutants.yaml if it has one there.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from experiments.results.provenance import git_commit
from experiments.system.files import CODE_FOLDER, cache_folder, write_atomically
from tests.testbed.openstack.environment import environment

HERE = Path(__file__).parent
COMMAND = "python -m tests.benchmarks.mutants"
COPIED = (
    "README.md",
    "ansible",
    "containers",
    "docs",
    "experiments",
    "mkdocs.yml",
    "provision",
    "pyproject.toml",
    "tests",
)
Mutant = dict[str, Any]


def main() -> None:
    """Test mutants, print the score of each part, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, default=150, help="places in the code (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the sample (default: %(default)s)")
    parser.add_argument(
        "--limit-s", type=float, default=300, help="seconds for a mutant's tests (default: %(default)s)"
    )
    parser.add_argument("--at-most", type=int, help="maximum number of mutants of this call; the next call continues")
    parser.add_argument(
        "--again", action="store_true", help="also test again the mutants that survived, after you have added tests"
    )
    parser.add_argument("--out", type=Path, help="file for the figures")
    options = parser.parse_args()
    parts = tomllib.loads((HERE / "mutants.toml").read_text())
    folder = cache_folder() / f"mutants-{_digest(parts)}-{options.sample}-{options.seed}"
    copy_checkout(folder / "code")
    task = {
        "session": str(folder / "session.sqlite"),
        "out": str(folder / "mutants.jsonl"),
        "packages": str(next((environment("mutants") / "lib").glob("python3*")) / "site-packages"),
        "parts": {name: {"name": name, **part} for name, part in parts.items()},
        **{name: getattr(options, name) for name in ("sample", "seed", "limit_s", "at_most", "again")},
    }
    mutants = test_mutants(folder / "code", task)
    facts = {
        "command": f"{COMMAND} --sample {options.sample} --seed {options.seed}",
        "git_commit": git_commit(),
        **summary(mutants, yaml.safe_load((HERE / "equivalent_mutants.yaml").read_text()) or []),
    }
    print(json.dumps({name: facts[name] for name in ("all", "parts")}, indent=1))
    if options.out:
        write_atomically(options.out, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def copy_checkout(target: Path) -> None:
    """Update the copy of the checkout, which an interrupted run may have left with a mutant."""
    target.mkdir(parents=True, exist_ok=True)
    sources = [str(CODE_FOLDER / name) for name in COPIED]
    subprocess.run(
        ["rsync", "--archive", "--checksum", "--delete", "--exclude=__pycache__", *sources, target], check=True
    )


def test_mutants(code: Path, task: dict[str, Any]) -> list[Mutant]:
    """Test mutants in a copy of the checkout; return all that have a result."""
    variables = {**os.environ, "PYTHONPATH": str(code), "CI": "1"}
    command = [sys.executable, str(HERE / "session.py"), json.dumps(task)]
    subprocess.run(command, cwd=code, env=variables, check=True)
    return [json.loads(line) for line in Path(task["out"]).read_text().splitlines()]


def summary(mutants: list[Mutant], explained: list[Mutant]) -> dict[str, Any]:
    """Return the score of all mutants and of each part, and the survivors with their reasons."""
    mutants = [{**mutant, "reason": reason(mutant, explained)} for mutant in mutants]
    parts = sorted({mutant["part"] for mutant in mutants})
    return {
        "all": score(mutants),
        "parts": {part: score([mutant for mutant in mutants if mutant["part"] == part]) for part in parts},
        "survivors": [mutant for mutant in mutants if mutant["outcome"] == "survived"],
    }


def score(mutants: list[Mutant]) -> dict[str, float]:
    """Return numbers by outcome, and the percentage that was found: of all mutants, and without explained survivors."""
    outcomes = Counter(mutant["outcome"] for mutant in mutants)
    found = len(mutants) - outcomes["survived"]
    explained = sum(bool(mutant["reason"]) for mutant in mutants if mutant["outcome"] == "survived")
    return {
        "mutants": len(mutants),
        **{outcome: number for outcome, number in sorted(outcomes.items()) if number},
        "explained": explained,
        "found_percent": round(100 * found / len(mutants), 1),
        "found_percent_without_explained": round(100 * found / max(1, len(mutants) - explained), 1),
    }


def reason(mutant: Mutant, explained: list[Mutant]) -> str:
    """Return the reason why no test can find a survivor; '' if nobody has stated one."""
    same = (one["reason"] for one in explained if all(one[name] == mutant[name] for name in ("module", "change")))
    return next(same, "")


def _digest(parts: dict[str, Any]) -> str:
    """Return a hash of the mutated modules: a change of them begins a new sample."""
    patterns = [pattern for part in parts.values() for pattern in part["modules"]]
    modules = sorted({path for pattern in patterns for path in CODE_FOLDER.glob(pattern)})
    return hashlib.sha256(b"".join(module.read_bytes() for module in modules)).hexdigest()[:12]


if __name__ == "__main__":
    main()
