"""The same terminal for every test, whatever the caller's shell or an earlier test has set."""

import pytest

from tests.support.services.terminal import TERMINAL_VARIABLES


@pytest.fixture(autouse=True)
def _no_terminal_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TERMINAL_VARIABLES:
        monkeypatch.delenv(name, raising=False)
