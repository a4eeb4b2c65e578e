"""Blame real releases: python -m tests.benchmarks.blame.real_releases [CASE]... writes real_releases.json.

A case moves packages of containers/current.txt to earlier releases, one of which changes a row. After the bisection,
two more environments confirm the culprits: in one, only the culprits have earlier releases; in the other, only the
other packages have them. Needs a package index.
"""

import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments.blame.environment import create_environment
from experiments.blame.observation import find_difference
from experiments.blame.observe import Method, ObservationRequest, observe
from experiments.blame.pins import Pin, Pins, pins_of
from experiments.blame.uv import requirement_lines
from experiments.results.provenance import git_commit
from experiments.suites.suite import suite_named

RECORD = Path(__file__).with_suffix(".json")
EARLIER = {
    "accelerate": "1.14.0",
    "datasets": "5.1.0",
    "dill": "0.4.0",
    "einops": "0.8.1",
    "fsspec": "2025.12.0",
    "lightning": "2.6.5",
    "litgpt": "0.5.12",
    "multiprocess": "0.70.18",
    "networkx": "3.6",
    "packaging": "24.2",
    "peft": "0.21.1",
    "psutil": "7.2.1",
    "sympy": "1.13.3",
    "torchmetrics": "1.8.2",
    "tqdm": "4.70.0",
}
"""Releases that do not change the rows of the cases."""
CASES: dict[str, tuple[str, Method, dict[str, str]]] = {
    "peft": ("slurm_hf_trainer/neo-1gpu-peft/grads_gib", "prediction", {"peft": "0.11.1"}),
    "lightning": ("single_gpu_blip2/reduced-batch", "miniature", {"lightning": "2.3.3"}),
    "transformers": (
        "single_gpu_blip2/reduced-batch",
        "miniature",
        {"transformers": "5.0.0", "tokenizers": "0.22.2"},
    ),
}
"""Target, how it is observed, and the releases that change it."""


def main(names: Iterable[str]) -> None:
    """Run the cases and write their record after each."""
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    for name in names:
        record[name] = _case(name, *CASES[name])
        RECORD.write_text(json.dumps(record, indent=2) + "\n")


def _case(name: str, target: str, method: Method, changing: dict[str, str]) -> dict[str, Any]:
    """Return the record of a case: how it was made, the answer of ``testbed blame``, and its confirmation."""
    current, earlier = pins_of("current", "--bad"), EARLIER | changing
    moved = {**current, **{package: Pin(version) for package, version in earlier.items()}}
    file = Path(f"{name}-earlier.txt")
    file.write_text(requirement_lines({package: pin.version for package, pin in moved.items()}))
    words = ["blame", target, "--good", str(file), "--bad", "current", "--by", method, "--json"]
    try:
        done = subprocess.run([sys.executable, "-m", "experiments", *words], check=True, stdout=subprocess.PIPE)
    finally:
        file.unlink()
    found = json.loads(done.stdout)
    culprits = {one["package"] for one in found["culprits"]}
    return {
        "command": shlex.join(["testbed", *words]),
        "written_by": f"python -m tests.benchmarks.blame.real_releases {name}",
        "commit": git_commit(),
        "machine": f"{platform.machine()}, Python {platform.python_version()}, no GPU",
        "earlier": earlier,
        "changed": sorted(changing),
        "right": culprits == set(changing),
        "only_the_culprits_moved_changes_it": _changes(target, method, current, moved, culprits),
        "all_others_moved_changes_it": _changes(target, method, current, moved, earlier.keys() - culprits),
        "found": found,
    }


def _changes(target: str, method: Method, current: Pins, moved: Pins, names: Iterable[str]) -> bool:
    """Return whether the target differs between the current environment and one with earlier releases of ``names``."""
    suite, row, *quantity = target.split("/")
    card = suite_named(suite).cards[0]
    request = ObservationRequest(suite, (row,), card, "/".join([row, *quantity]) if quantity else None)
    pins = {**current, **{name: moved[name] for name in names}}
    before, now = (observe(request, method, create_environment(one)) for one in (pins, current))
    return find_difference(before, now, request.compared) is not None


if __name__ == "__main__":
    main(sys.argv[1:] or CASES)
