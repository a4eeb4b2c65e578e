"""Options of a traced script, as `testbed predict -- COMMAND` has them."""
# ruff: noqa: RUF009 (the fields are declared by a function that returns dataclasses.field)

from dataclasses import dataclass
from pathlib import Path

from experiments.system.options import option


@dataclass(frozen=True)
class ScriptOptions:
    """How far a script is traced and what is done with the answer. limit_s: seconds; max_gib: GiB on one GPU."""

    steps: int = option(2, "Script: optimizer steps to trace; one more forward and backward pass follows.", minimum=1)
    limit_s: float = option(600.0, "Script: seconds after which it is stopped where it is.", flag="--time-limit")
    all_ranks: bool = option(False, "Script with a launcher: trace each rank, not the first alone.", flag="--all-ranks")
    fake_weights: bool = option(
        False, "Script: make models whose weights are missing from their configuration.", flag="--fake-weights"
    )
    sandbox: bool = option(
        False, "Script: run it on a copy of this folder, with a temporary HOME and TMPDIR and without network."
    )
    max_gib: float | None = option(None, "Script: exit with code 1 if it needs more GiB.")
    page: Path | None = option(None, "Script: write a page with the memory over time to this file.")
