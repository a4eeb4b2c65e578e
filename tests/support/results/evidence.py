"""Stored results of runs on GPUs."""

from pathlib import Path

import experiments

EVIDENCE = Path(experiments.__file__).parent / "evidence"
RUNS = sorted(path.parent for path in EVIDENCE.glob("*/run.json"))
