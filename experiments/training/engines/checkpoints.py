"""Checkpoints of transformers' Trainer: what a row that was cut off goes on from."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from experiments.results.provenance import code_sha256
from experiments.results.schema import CHECKPOINTS_FOLDER
from experiments.suites.row_spec import RowSpec
from experiments.system.files import write_atomically

EVERY_STEPS = 100
SPEC_FILE = "row.txt"


class MarkCallback(TrainerCallback):
    """Marks each checkpoint, once all of it is written, with the row that it belongs to; leaves out the one at the end.

    The Trainer's last checkpoint would come after everything that is measured, and nobody would read it.
    """

    def __init__(self, spec: RowSpec) -> None:
        self._mark = _mark_of(spec)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_save = False

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        if state.is_world_process_zero:
            assert args.output_dir is not None
            write_atomically(Path(args.output_dir) / f"checkpoint-{state.global_step}" / SPEC_FILE, self._mark)


def checkpoints_folder(spec: RowSpec, out: Path) -> Path:
    """Where all ranks of a row keep their checkpoints: in its folder, in which each of several has one of its own."""
    return (out.parent if spec.settings.ranks > 1 else out) / CHECKPOINTS_FOLDER


def saving(spec: RowSpec) -> dict[str, Any]:
    """The Trainer's arguments: a row that trains as taught leaves a checkpoint every 100 steps, and keeps the last."""
    if spec.length != "as-taught":
        return {"save_strategy": "no"}
    return {"save_strategy": "steps", "save_steps": EVERY_STEPS, "save_total_limit": 1}


def last_checkpoint(spec: RowSpec, folder: Path) -> Path | None:
    """The row's last whole checkpoint in ``folder``, made by the same code; None when there is none."""
    marks = [path for path in folder.glob(f"checkpoint-*/{SPEC_FILE}") if path.read_text() == _mark_of(spec)]
    return max((path.parent for path in marks), key=steps_of, default=None)


def steps_of(checkpoint: Path) -> int:
    """Optimizer steps that were done when it was written."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


@contextmanager
def dropped_at_the_end(folder: Path) -> Iterator[None]:
    """Remove the checkpoints when the training ends, however it does; only one that is killed leaves them."""
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _mark_of(spec: RowSpec) -> str:
    return f"{spec.fingerprint} {code_sha256()}"
