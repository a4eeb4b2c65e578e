"""Where what is fetched, converted or compiled once is kept between runs."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """TESTBED_CACHE, else llm-testbed in the user's cache folder; it need not exist."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("TESTBED_CACHE") or home / "llm-testbed")
