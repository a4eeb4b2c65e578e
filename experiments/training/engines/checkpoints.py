"""Save and find checkpoints of transformers' Trainer, from which an interrupted row resumes."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from experiments.results.provenance import code_sha256
from experiments.results.schema import CHECKPOINTS_FOLDER
from experiments.suites.row_spec import RowSpec
from experiments.system.files import write_atomically

SAVE_EVERY_STEPS = 100
FINGERPRINT_FILE = "fingerprint.txt"


class FingerprintCallback(TrainerCallback):
    """Callback that adds the row's fingerprint to each complete checkpoint.

    The callback prevents the checkpoint after the last step, because nobody reads it.
    """

    def __init__(self, spec: RowSpec) -> None:
        self._fingerprint = _fingerprint_of(spec)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_save = False

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        if state.is_world_process_zero:
            assert args.output_dir is not None
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_atomically(checkpoint / FINGERPRINT_FILE, self._fingerprint)


def checkpoints_folder(spec: RowSpec, out: Path) -> Path:
    """Return the checkpoint folder of a row, which all its ranks share.

    ``out`` is the folder of this process: the row's folder or, for a row of several ranks, a folder inside the row's
    folder. The worker removes the checkpoints after all ranks have ended, because each rank lists them at its end.
    """
    return (out.parent if spec.settings.ranks > 1 else out) / CHECKPOINTS_FOLDER


def save_arguments(spec: RowSpec) -> dict[str, Any]:
    """Return the Trainer's arguments about checkpoints.

    A row at full length saves a checkpoint every 100 steps and keeps only the last one. Other rows save none.
    """
    if spec.length != "as-taught":
        return {"save_strategy": "no"}
    return {"save_strategy": "steps", "save_steps": SAVE_EVERY_STEPS, "save_total_limit": 1}


def last_checkpoint(spec: RowSpec, folder: Path) -> Path | None:
    """Return the row's last complete checkpoint in ``folder`` that the current code has made; None if there is none."""
    fingerprint = _fingerprint_of(spec)
    files = [path for path in folder.glob(f"checkpoint-*/{FINGERPRINT_FILE}") if path.read_text() == fingerprint]
    return max((path.parent for path in files), key=completed_steps, default=None)


def completed_steps(checkpoint: Path) -> int:
    """Return the number of optimizer steps before the checkpoint."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _fingerprint_of(spec: RowSpec) -> str:
    return f"{spec.fingerprint} {code_sha256()}"
