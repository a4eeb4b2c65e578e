"""Extensions that a library compiles at its first use (DeepSpeed does): kept between runs, never waited for in vain."""

import hashlib
import sys
from pathlib import Path

from experiments.runners.local import row_process
from experiments.system.files import cache_folder

LOCK = "lock"


def kept_in(processor: str) -> Path:
    """Where extensions for this Python environment and this processor are kept, as TORCH_EXTENSIONS_DIR."""
    made_for = hashlib.sha256(f"{sys.prefix}\0{sys.version}\0{processor}".encode()).hexdigest()
    return cache_folder() / "extensions" / made_for[:12]


def drop_stale_locks(folder: Path) -> None:
    """Remove locks that a killed build left; while any row lives on this machine a lock may be a living build's."""
    if row_process.rows_alive():
        return
    for lock in folder.glob(f"*/{LOCK}"):
        lock.unlink(missing_ok=True)
