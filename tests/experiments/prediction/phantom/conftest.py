"""Fixtures of the tests of the phantom device."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="session")
def probe_results(library_cache):
    """Return the result of every program in probes.py; None for one that failed, whose traceback is in the output."""
    command = [sys.executable, "-m", "tests.experiments.prediction.phantom.probes", str(library_cache)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    print(done.stderr)
    return json.loads(done.stdout)
