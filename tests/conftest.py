"""Remove the variables that describe a terminal or a running make, so that every test has the same output."""

import pytest

from tests.support.services.terminal import TERMINAL_VARIABLES

MAKE_VARIABLES = ("MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS", "MAKE_TERMOUT", "MAKE_TERMERR")


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*TERMINAL_VARIABLES, *MAKE_VARIABLES):
        monkeypatch.delenv(name, raising=False)
