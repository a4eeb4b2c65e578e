"""Rows for tests, small enough to train on a CPU in a second."""

from typing import Any

from experiments.results.schema import Memory
from experiments.suites.models import Model
from experiments.suites.row_spec import RowSpec
from experiments.suites.settings import Settings
from tests.support.results.in_memory import CARD, COMMON

GIB = 1024**3
OPT, T5 = "blip2-opt-2.7b", "blip2-flan-t5-xxl"
LLAMA, GPT_NEO = "tiny-llama-1.1b", "gpt-neo-1.3b"
LORA = {"r": 4, "alpha": 8, "dropout": 0.0, "targets": ["q_proj", "v_proj"]}
LORA_T5 = LORA | {"targets": ["q", "v"]}
NF4 = {"kind": "nf4"}
ROW: dict[str, Any] = {
    "suite": "lab",
    "recipe_version": 1,
    "row": "a",
    "card": CARD,
    "size": "tiny",
    "length": "as-taught",
    "weights": "random",
    "data": "synthetic",
    "input": "as-taught",
}
SETTINGS = COMMON | {"precision": "32-true", "batch_size": 2, "train_samples": 12}


def spec(own: Model | None = None, **changes: Any) -> RowSpec:
    """Return a row with a tiny model; ``changes`` are settings or fields of the spec; ``own`` is a custom model."""
    row = {key: value for key, value in changes.items() if key in RowSpec.model_fields and key != "model"}
    settings = {key: value for key, value in changes.items() if key not in row}
    return RowSpec.model_validate(
        {**ROW, **row, "model": own, "settings": Settings.model_validate(SETTINGS | settings)}
    )


def in_bytes(gib: float) -> int:
    return round(gib * GIB)


def shots(memory: Memory, point: str, field: str) -> list[int]:
    """Return the value of ``field``, bytes, in each snapshot at ``point``."""
    return [in_bytes(getattr(shot, field)) for shot in memory.snapshots if shot.point == point]


TEXT: dict[str, Any] = {
    "engine": "hf_trainer",
    "model": GPT_NEO,
    "dataset": "constant",
    "max_length": 16,
    "train_samples": None,
}
