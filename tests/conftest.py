"""Remove the variables that describe a terminal, so that every test has the same output."""

import pytest

from tests.support.services.terminal import TERMINAL_VARIABLES


@pytest.fixture(autouse=True)
def _no_terminal_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TERMINAL_VARIABLES:
        monkeypatch.delenv(name, raising=False)
