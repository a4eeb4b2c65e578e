"""The environment of every test, the marker of slow tests, and groups of tests that share a warm process.

The garbage collector is off while pytest imports the tests, and later skips the objects that the imports created, which
all exist until the process ends. This saves a third of the time in which pytest collects the tests, and seconds at the
end of each process. While tests run, it looks for garbage seldom. Slow tests run first, so that no worker runs a long
one after the others have ended. The variables that describe a terminal or a running make are removed, so that every
test has the same output. Threads of PyTorch sleep while they wait: otherwise they spin and take processor time from the
other workers.
"""

import gc
import os
from collections.abc import Iterator

import pytest

from tests.support.services.terminal import TERMINAL_VARIABLES
from tests.support.slow import is_slow, reject_slow_programs

MAKE_VARIABLES = ("MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS", "MAKE_TERMOUT", "MAKE_TERMERR")
COLLECT_AFTER = 100_000
"""After how many new objects the garbage collector looks for garbage; Python's 700 take a twentieth of the time."""
SLOW_MARKERS = ("slow", "openstack", "slurm", "node", "chain")
GROUPS = {
    "traces_start_warm": "scripts",
    "torchao_traces_start_warm": "torchao",
    "ranks_start_warm": "warm ranks",
    "finished_row": "worker",
    "train_once": "trained rows",
    "measure_row": "rows of hf_trainer",
    "measured_rows": "rows of litgpt",
    "folders": "screens of runs",
    "pages": "pages",
    "keys": "keys",
}
"""The group of the tests with a fixture, by its name. Its setup takes seconds: one worker runs all tests of a group."""

os.environ["OMP_WAIT_POLICY"] = "passive"  # OpenMP reads it when PyTorch is imported, so it is set before the tests are


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Iterator[None]:
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
        gc.set_threshold(COLLECT_AFTER)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_sessionfinish() -> Iterator[None]:
    yield
    gc.freeze()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Function]) -> Iterator[None]:
    for item in items:
        for fixture in GROUPS.keys() & item.fixturenames:
            item.add_marker(pytest.mark.xdist_group(GROUPS[fixture]))
        if is_slow(item):
            item.add_marker("slow")
    yield
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    for item in items:
        _pass_on_group(item)


def _pass_on_group(item: pytest.Item) -> None:
    """Copy a test's group, which pytest-xdist 3.8 appends to one of its names, to the name that pytest 9.2 reads.

    Without it, `--dist loadgroup` ignores the groups: https://github.com/pytest-dev/pytest-xdist/issues/1386
    """
    if grouped := vars(item).get("_nodeid"):
        item._id = type(item.id).parse(grouped)


@pytest.fixture(autouse=True)
def _bare_environment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not any(request.node.get_closest_marker(name) for name in SLOW_MARKERS):
        reject_slow_programs(monkeypatch)
    for name in (*TERMINAL_VARIABLES, *MAKE_VARIABLES):
        monkeypatch.delenv(name, raising=False)
