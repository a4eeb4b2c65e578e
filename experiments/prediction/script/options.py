"""Options of `testbed predict -- COMMAND`, which traces a script."""
# ruff: noqa: RUF009 (the fields are declared by a function that returns dataclasses.field)

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.system.options import option

if TYPE_CHECKING:
    from experiments.prediction.script.store import PredictionStore


@dataclass(frozen=True)
class ScriptOptions:
    """Options of a trace and of its output.

    limit_s: seconds after which the trace stops. max_gib: allowed GiB on one GPU; None: no limit. gpus: number of GPUs
    of each process; only programs of this project use several. store: stored predictions of the command; None: the
    command is always traced.
    """

    steps: int = option(2, "Script: optimizer steps to trace; one more forward and backward pass follows.", minimum=1)
    limit_s: float = option(600.0, "Script: seconds after which the trace stops.", flag="--time-limit")
    all_ranks: bool = option(
        False, "Rows of several ranks, or a script with a launcher: trace every rank.", flag="--all-ranks"
    )
    fake_weights: bool = option(
        False,
        "Script: make up missing weights and tokenizers; models still need their configuration.",
        flag="--fake-weights",
    )
    sandbox: bool = option(
        False, "Script: run it on a copy of this folder, with a temporary HOME and TMPDIR and without network."
    )
    max_gib: float | None = option(
        None, "Script: exit with code 1 if the script needs more than this many GiB.", minimum=0
    )
    page: Path | None = option(None, "Script: write a page with the memory over time to this file.")
    gpus: int = 1
    store: "PredictionStore | None" = None
