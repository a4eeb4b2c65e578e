"""The environment of every test, and groups of tests that share a warm process.

The variables that describe a terminal or a running make are removed, so that every test has the same output.
"""

import pytest

from tests.support.services.terminal import TERMINAL_VARIABLES

MAKE_VARIABLES = ("MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS", "MAKE_TERMOUT", "MAKE_TERMERR")
GROUPS = {"traces_start_warm": "scripts", "ranks_start_warm": "warm ranks"}
"""Groups of tests that use a warm process, by their fixture. With pytest-xdist, one worker runs a whole group."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    for item in items:
        for fixture in GROUPS.keys() & item.fixturenames:
            item.add_marker(pytest.mark.xdist_group(GROUPS[fixture]))


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*TERMINAL_VARIABLES, *MAKE_VARIABLES):
        monkeypatch.delenv(name, raising=False)
