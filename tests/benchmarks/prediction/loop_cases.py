"""Measure and predict the training programs of `testbed predict --model --loop`, and trainings on two GPUs.

    python -m tests.benchmarks.prediction.loop_cases measure FILE GPUS [WORD]   on GPUs without a memory limit
    python -m tests.benchmarks.prediction.loop_cases compare FILE TABLE [CARD]   without a GPU

GPUS: 1 or 2: the cases for so many GPUs. WORD: only the cases that contain it. Measured and predicted memory are those
before the program's third optimizer step; the measured time is the median of later steps.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.prediction.script.options import ScriptOptions
from experiments.prediction.script.record import ScriptPrediction
from tests.benchmarks.prediction.tables import ErrorTable, predicted_quantities
from tests.benchmarks.prediction.unchanged_program import SCRIPTS, STEPS, measure_in_fork, measure_one

MODELS = {
    "llama": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 16, "num_key_value_heads": 4},
    "mistral": {"hidden_size": 2048, "intermediate_size": 7168, "num_hidden_layers": 12, "num_attention_heads": 16},
    "qwen2": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "mixtral": {
        "hidden_size": 1024,
        "intermediate_size": 2048,
        "num_hidden_layers": 8,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
    },
    "gemma2": {
        "hidden_size": 1152,
        "intermediate_size": 4608,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 128,
    },
    "bloom": {"hidden_size": 1024, "n_layer": 24, "n_head": 16},
    "t5": {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12, "decoder_start_token_id": 0},
    "bart": {},
    "bert": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    "vit": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
}
"""Grouped queries (llama, mistral, qwen2), tied heads, experts, soft-capped logits, ALiBi, two encoder-decoders, an
encoder and a vision model: keys of their config.json."""
PLAIN = {"precision": "bf16-mixed", "optimizer": "adamw"}
TRAINER = {"precision": "bf16-mixed", "checkpointing": True}
OWN: dict[str, dict[str, object]] = {
    "plain mistral": {"lora": {"r": 16, "targets": "all-linear"}, "precision": "bf16-true"},
    "trainer mistral": {"lora": {"r": 16, "targets": "all-linear"}, "precision": "bf16-true"},
    "plain llama": {"precision": "bf16-true", "optimizer": "sgd_momentum"},
    "trainer llama": {"optimizer": "adafactor"},
    "plain bloom": {"precision": "32-true"},
    "trainer gemma2": {"precision": "bf16-mixed", "accumulate": 2},
    "plain bert": {"precision": "32-true", "attention": "eager"},
    "trainer vit": {"batch": 64},
}
"""Settings of single cases, in place of the loop's."""


class Case(NamedTuple):
    """A training program. words: the command line after `python`. gpus: number of GPUs; torchrun starts several."""

    name: str
    words: tuple[str, ...]
    gpus: int = 1


def program(loop: str, model: str, **overrides: object) -> tuple[str, ...]:
    """Return the arguments of python that train the model in the loop."""
    own = OWN.get(f"{loop} {model}", PLAIN if loop == "plain" else TRAINER)
    return loop_words(loop, model, {"batch": 8, "seq": 512, **own, **overrides})


def loop_words(
    loop: str, model: str, settings: Mapping[str, object], sizes: Mapping[str, object] = {}
) -> tuple[str, ...]:
    """Return the arguments of python that train the model in the loop with these settings of a LoopJob.

    sizes: keys of config.json that differ from those of MODELS.
    """
    architecture = {"model_type": model, **MODELS[model], **sizes}
    job = {"model": {"family": "transformers", "architecture": architecture}, **settings}
    return "-m", f"experiments.prediction.loops.{loop}", json.dumps(job)


CASES = (
    *(Case(f"{loop} {model}", program(loop, model)) for model in MODELS for loop in ("plain", "trainer")),
    Case("plain llama, DDP", program("plain", "llama"), 2),
    Case("trainer qwen2, DDP", program("trainer", "qwen2"), 2),
    Case("trainer llama, FSDP", program("trainer", "llama", fsdp=1, optimizer="adamw"), 2),
    Case("accelerated.py, DDP", (str(SCRIPTS / "accelerated.py"),), 2),
)


def measure(file: Path, gpus: int, word: str = "") -> None:
    """Measure each case for ``gpus`` GPUs that contains ``word``; append one line for each rank."""
    with file.open("a") as out:
        for case in (case for case in CASES if case.gpus == gpus and word in case.name):
            found = [measure_in_fork([*case.words])] if gpus == 1 else measure_ranks(case)
            print(case.name, found, flush=True)
            for one in found:
                out.write(json.dumps({"case": case.name, **one}) + "\n")
            out.flush()


def measure_ranks(case: Case) -> list[dict[str, Any]]:
    """Return the measurement of each rank of a case on several GPUs."""
    words = ["torchrun", "--nproc-per-node", str(case.gpus), "-m", __spec__.name, "one", *case.words]
    ran = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    lines = [line for line in ran.stdout.splitlines() if line.startswith('{"rank"')]
    return [json.loads(line) for line in lines] or [{"error": ran.stderr.strip().splitlines()[-5:]}]


def compare(file: Path, table: Path, card: str = "h100_94gb") -> None:
    """Predict every measured case on ``card``; write a table of both with the errors."""
    measured = [json.loads(line) for line in file.read_text().splitlines()]
    errors = ErrorTable("case", "rank")
    for case in CASES:
        found = {one["rank"]: one for one in measured if one["case"] == case.name and "rank" in one}
        for one in predict_ranks(case, card) if found else []:
            predicted = predicted_quantities(one)
            print(errors.add(case.name, one.rank, measured=found[one.rank], predicted=predicted), flush=True)
    print(*errors.summary(), sep="\n")
    table.write_text(errors.text())


def predict_ranks(case: Case, card: str) -> list[ScriptPrediction]:
    """Return the prediction of each rank of a case."""
    from experiments.prediction.script.trace import trace_script

    start = ["python"] if case.gpus == 1 else ["torchrun", "--nproc-per-node", str(case.gpus)]
    return trace_script([*start, *case.words], [card], lambda _: None, ScriptOptions(steps=STEPS, all_ranks=True))


if __name__ == "__main__":
    what, *given = sys.argv[1:]
    if what == "one":
        measure_one(given)
    elif what == "measure":
        measure(Path(given[0]), int(given[1]), *given[2:])
    else:
        compare(Path(given[0]), Path(given[1]), *given[2:])
