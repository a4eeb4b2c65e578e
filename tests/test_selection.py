"""How tests run: groups of pytest-xdist, the marker ``slow``, and the variables of make."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.system.files import CODE_FOLDER
from tests.support.slow import FILES, PYTHON
from tests.testbed.conftest import CLOUDS


@pytest.mark.xdist_group("one worker")
def test_the_xdist_group_of_a_test_is_passed_to_the_scheduler(request):
    grouped = request.config.getoption("loadgroup", False)
    assert request.node.nodeid.endswith("@one worker") == grouped


def test_slow_tests_run_first(request):
    fast = [item.get_closest_marker("slow") is None for item in request.session.items]
    assert fast == sorted(fast)


def test_openstack_services_start_in_no_more_workers_than_requested(request):
    leasing = [item for item in request.session.items if item.get_closest_marker("openstack")]
    groups = {item.get_closest_marker("xdist_group").args[0] for item in leasing}
    assert len(groups) == min(CLOUDS, len(leasing))
    if request.config.getoption("loadgroup", False):
        assert {item.nodeid.rpartition("@")[2] for item in leasing} == groups


@pytest.mark.parametrize("place", FILES)
def test_every_entry_in_the_list_of_slow_tests_exists(place):
    file, _, test = place.partition("::")
    assert f"def {test or 'test_'}" in (Path(__file__).parent / file).read_text()


@pytest.mark.parametrize("command", [["chromium"], "c++ a.cpp", [PYTHON, "-m", "experiments.prediction.tracer"]])
def test_a_test_that_is_not_slow_cannot_start_a_program_of_several_seconds(command):
    with pytest.raises(pytest.fail.Exception, match="so it is slow: mark it"):
        subprocess.run(command)


def test_a_test_that_is_not_slow_can_start_a_short_program():
    assert subprocess.run([sys.executable, "-c", ""]).returncode == 0


@pytest.mark.slow
def test_a_slow_test_can_start_any_program(tmp_path):
    assert subprocess.run([PYTHON, "-c", "", "experiments.prediction.tracer"]).returncode == 0


def test_make_lets_python_store_compiled_modules():
    show = ["make", "--silent", "--eval", "show: ; @echo [$$PYTHONDONTWRITEBYTECODE]", "show"]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    assert subprocess.run(show, cwd=CODE_FOLDER, env=environment, capture_output=True, text=True).stdout == "[]\n"
