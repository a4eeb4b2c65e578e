"""Cache for PyTorch extensions compiled on first use (DeepSpeed), with removal of stale build locks."""

import hashlib
import sys
from pathlib import Path

from experiments.runners.local import row_process
from experiments.system.files import cache_folder

LOCK = "lock"


def extensions_folder(processor: str) -> Path:
    """Return the cache for this Python environment and this processor, the value of TORCH_EXTENSIONS_DIR."""
    digest = hashlib.sha256(f"{sys.prefix}\0{sys.version}\0{processor}".encode()).hexdigest()
    return cache_folder() / "extensions" / digest[:12]


def drop_stale_locks(folder: Path) -> None:
    """Remove the locks of killed builds. While any row is alive on this machine, nothing is removed."""
    if row_process.rows_alive():
        return
    for lock in folder.glob(f"*/{LOCK}"):
        lock.unlink(missing_ok=True)
