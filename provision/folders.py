"""The folder of the program's state: the journal of leases, pinned host keys, and the simulated site ``demo``."""

import os
from pathlib import Path


def state_folder() -> Path:
    """Return ``$TESTBED_LEDGER``, else ``llm-testbed`` under ``$XDG_STATE_HOME`` or ``~/.local/state``."""
    if folder := os.environ.get("TESTBED_LEDGER"):
        return Path(folder)
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "llm-testbed"


def demo_folder() -> Path:
    """Return the folder of the simulated site's state, journal and SSH key. Real leases are never recorded in it."""
    return state_folder() / "demo"
