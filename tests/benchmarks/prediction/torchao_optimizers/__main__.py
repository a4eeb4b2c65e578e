"""Measure torchao's AdamW in 4 and 8 bit on a GPU, and compare with predictions.

    python -m tests.benchmarks.prediction.torchao_optimizers measure FILE         on a GPU, with torchao and Triton
    python -m tests.benchmarks.prediction.torchao_optimizers compare FILE OUT     without a GPU, with torchao

Each case trains four steps in a process of its own, with an empty cache of compiled code. Loops: `--loop plain` of
`testbed predict`, and transformers' Trainer with its own options `adamw_torch_4bit` and `adamw_torch_8bit`. For one
parameter, every allocation in its third update is recorded, too.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from experiments.prediction.custom import LoopOptimizer
from provision.temporary import TemporaryFolder

CARD = "h200_141gb"
TOKENS, STEPS = 512, 4
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
QWEN = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
MODELS: dict[str, dict[str, Any]] = {"llama": LLAMA, "qwen": QWEN}
TRAINER_NAMES: dict[LoopOptimizer, str] = {"adamw_4bit": "adamw_torch_4bit", "adamw_8bit_torchao": "adamw_torch_8bit"}
SHAPE = (32000, 768)
EVENTS = {"alloc": 1, "free_completed": -1}


class Case(NamedTuple):
    """A training. loop: plain or trainer; precision, optim: as in `testbed predict`."""

    loop: str
    model: str
    precision: str
    optim: LoopOptimizer


CASES = [
    Case("plain", "llama", "bf16-true", "adamw_4bit"),
    Case("plain", "llama", "32-true", "adamw_8bit_torchao"),
    Case("plain", "qwen", "bf16-true", "adamw_4bit"),
    Case("plain", "qwen", "32-true", "adamw_4bit"),
    Case("plain", "qwen", "bf16-true", "adamw_8bit_torchao"),
    Case("plain", "qwen", "32-true", "adamw_8bit_torchao"),
    Case("trainer", "llama", "bf16-true", "adamw_4bit"),
    Case("trainer", "llama", "32-true", "adamw_8bit_torchao"),
]


def measure(file: Path) -> None:
    """Measure each case, and the update of one parameter, in processes of their own; append a line each to ``file``."""
    jobs = [*(list(case) for case in CASES), *(["update", optim] for optim in TRAINER_NAMES)]
    for job in jobs:
        with TemporaryFolder("compiled") as folder:
            environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder), "TRITON_CACHE_DIR": f"{folder}/triton"}
            command = [sys.executable, "-m", __spec__.name, "one", *job]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        with file.open("a") as out:
            out.write(done.stdout.splitlines()[-1] + "\n")


def measure_one(words: list[Any]) -> dict[str, Any]:
    """Return the peaks of a case in this process, or the events of an update."""
    if words[0] == "update":
        return {"optim": words[1], "shape": SHAPE, "events": record_update(words[1])}
    import torch

    case = Case(*words)
    (train_plain if case.loop == "plain" else train_with_trainer)(case)
    peaks = {"peak": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
    return case._asdict() | peaks


def build(case: Case) -> Any:
    """Return the model of a case on the host, with random weights."""
    import transformers

    from experiments.prediction.loops.build import DTYPES

    values = dict(MODELS[case.model])
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    config.use_cache = False
    return getattr(transformers, values["architectures"][0])._from_config(config, dtype=DTYPES[case.precision]).train()


def train_plain(case: Case) -> None:
    """Train as `--loop plain` does."""
    import torch

    from experiments.prediction.loops.optimizers import find_optimizer

    model = build(case).to("cuda")
    optimizer_class, options = find_optimizer(case.optim, "adamw_foreach")
    optimizer = optimizer_class(list(model.parameters()), **options)
    text = torch.randint(5, 1000, (1, TOKENS))
    for _ in range(STEPS):
        tokens = text.to("cuda")
        model(input_ids=tokens, labels=tokens.clone()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def train_with_trainer(case: Case) -> None:
    """Train with transformers' Trainer, which creates the optimizer by its own name."""
    import torch
    from transformers import Trainer, TrainingArguments

    text = torch.randint(5, 1000, (TOKENS,))
    with TemporaryFolder("trainer") as folder:
        arguments = TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=1,
            max_steps=STEPS,
            optim=TRAINER_NAMES[case.optim],
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        data: Any = [{"input_ids": text, "labels": text.clone()}] * STEPS
        Trainer(build(case), arguments, train_dataset=data).train()


def record_update(optim: LoopOptimizer) -> list[int]:
    """Return the bytes of the allocations in the third update of a parameter, negative for those that are freed."""
    import torch

    from experiments.prediction.loops.optimizers import find_optimizer

    parameter = torch.nn.Parameter(torch.randn(SHAPE, dtype=torch.bfloat16, device="cuda"))
    optimizer_class, options = find_optimizer(optim, "adamw_foreach")
    optimizer = optimizer_class([parameter], **options)
    parameter.grad = torch.randn_like(parameter)
    for _ in range(2):
        optimizer.step()
    torch.cuda.memory._record_memory_history(context=None)
    optimizer.step()
    torch.cuda.synchronize()
    events = torch.cuda.memory._snapshot()["device_traces"][0]
    return [EVENTS[one["action"]] * one["size"] for one in events if one["action"] in EVENTS]


def predict(case: Case, folder: Path) -> dict[str, int]:
    """Return the predicted peaks of a case in bytes."""
    from experiments.prediction.custom import CustomTraining
    from experiments.prediction.loop import program_command, trace_options
    from experiments.prediction.script.trace import trace_script
    from experiments.system.files import GIB

    path = folder / f"{case.model}.json"
    path.write_text(json.dumps(MODELS[case.model]))
    options: Any = case._asdict() | {"model": str(path)}
    training = CustomTraining(card=CARD, seq=TOKENS, **options)
    command = program_command(training)
    (found,) = trace_script(command, [CARD], lambda _: None, trace_options(training))
    return {"predicted_peak": round(found.peak_gib * GIB), "predicted_reserved": round(found.reserved_gib * GIB)}


def compare(file: Path, out: Path) -> None:
    """Predict every measured case; write measured and predicted bytes and the largest errors as JSON."""
    measured = [json.loads(line) for line in file.read_text().splitlines()]
    with TemporaryFolder("models") as folder:
        rows = [one | predict(Case(*(one[name] for name in Case._fields)), folder) for one in measured if "peak" in one]
    errors = {name: max(abs(row[f"predicted_{name}"] / row[name] - 1) for row in rows) for name in ("peak", "reserved")}
    out.write_text(json.dumps({"card": CARD, "largest_errors": errors, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    what, *given = sys.argv[1:]
    if what == "one":
        print(json.dumps(measure_one(given)))
    elif what == "measure":
        measure(Path(given[0]))
    else:
        compare(Path(given[0]), Path(given[1]))
