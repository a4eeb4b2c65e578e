"""Memory traced by the phantom device, compared with real allocations on a CPU for the same model and shapes."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import pytest

from experiments.system.files import cache_folder

ROOT = Path(__file__).parents[3]
WITHIN = 0.001

pytestmark = [
    pytest.mark.skipif(not (find_spec("torch") and which("c++")), reason="needs torch and a C++ compiler"),
    pytest.mark.xdist_group("truth"),
]


def peak(*command):
    """Return the memory at the peak that tiny_step prints, bytes by category."""
    line = [sys.executable, "-m", "tests.experiments.prediction.tiny_step", *command]
    return json.loads(subprocess.run(line, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


@pytest.fixture(scope="module")
def real_peak():
    return peak("real")


@pytest.fixture(scope="module")
def traced_peak():
    return peak("traced", str(cache_folder()))


def test_the_traced_peak_equals_the_real_peak(real_peak, traced_peak):
    assert sum(traced_peak.values()) == pytest.approx(real_peak, rel=WITHIN)


@pytest.mark.parametrize("category", ["others", "params", "grads"])
def test_a_tracer_that_omits_a_kind_of_memory_is_detected(real_peak, traced_peak, category):
    assert sum(traced_peak.values()) - traced_peak[category] != pytest.approx(real_peak, rel=WITHIN)
