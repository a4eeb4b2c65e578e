"""Measure unchanged training scripts on a GPU, and compare the measurements with predictions.

    python -m tests.benchmarks.prediction.script_cases measure FILE [WORD]  on a GPU without a memory limit
    python -m tests.benchmarks.prediction.script_cases compare FILE TABLE [CARD]   without a GPU

WORD: measure only the cases that contain it. The command appends the measurements to FILE. Measured and predicted
memory are those before the script's third optimizer step; the measured time is the median of later steps.
"""

import json
import sys
from pathlib import Path

from tests.benchmarks.prediction.tables import ErrorTable, predicted_quantities
from tests.benchmarks.prediction.unchanged_program import SCRIPTS, STEPS, measure_in_fork

MODELS = ("gpt2", "llama", "qwen2", "gemma2", "bloom", "mixtral", "opt", "neox", "t5", "bert", "vit")
CASES = (
    *(f"loop.py --model {name}" for name in MODELS),
    "loop.py --model llama --precision bf16 --optimizer sgd",
    "loop.py --model llama --precision bf16 --checkpointing",
    "loop.py --model llama --precision amp --accumulate 4 --clip",
    "loop.py --model gpt2 --precision amp-fp16 --clip",
    "loop.py --model qwen2 --precision bf16 --batch 16",
    "loop.py --model opt --optimizer momentum",
    "loop.py --model opt --optimizer adamw-loop",
    "loop.py --model opt --optimizer adamw-fused",
    "loop.py --model neox --optimizer adafactor",
    "loop.py --model mixtral --precision bf16 --length 1024",
    "trainer.py --model gpt2 --bf16",
    "trainer.py --model llama --bf16 --checkpointing --batch 4",
    "trainer.py --model qwen2 --bf16 --optim adamw_torch",
    "trainer.py --model t5 --optim sgd",
    "trainer.py --model bert --batch 32",
    "trainer.py --model vit --batch 64",
    "accelerated.py",
    "small_gpt.py",
)


def measure(file: Path, word: str = "") -> None:
    """Measure each case that contains ``word`` in a separate process; append one line per case."""
    with file.open("a") as out:
        for case in (case for case in CASES if word in case):
            script, *words = case.split()
            found = measure_in_fork([str(SCRIPTS / script), *words])
            print(case, found, flush=True)
            out.write(json.dumps({"case": case, **found}) + "\n")
            out.flush()


def compare(file: Path, table: Path, card: str = "h100_94gb") -> None:
    """Predict every measured case on ``card``; write a table of both with the errors."""
    from experiments.prediction.script.options import ScriptOptions
    from experiments.prediction.script.trace import trace_script

    errors = ErrorTable("case")
    for line in file.read_text().splitlines():
        case = json.loads(line)
        if "error" in case:
            continue
        script, *words = case["case"].split()
        command = ["python", str(SCRIPTS / script), *words]
        (one,) = trace_script(command, [card], lambda _: None, ScriptOptions(steps=STEPS))
        print(errors.add(f"`{case['case']}`", measured=case, predicted=predicted_quantities(one)), flush=True)
    print(*errors.summary(), sep="\n")
    table.write_text(errors.text())


if __name__ == "__main__":
    what, *given = sys.argv[1:]
    if what == "measure":
        measure(Path(given[0]), *given[1:])
    else:
        compare(Path(given[0]), Path(given[1]), *given[2:])
