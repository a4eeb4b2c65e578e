"""Fit the time that transformers' Trainer needs of the host for each module of the model in each micro-step.

    python -m tests.benchmarks.prediction.host_times.trainer_steps measure FILE   on a GPU
    python -m tests.benchmarks.prediction.host_times.trainer_steps fit

In each step, the Trainer calls three functions that go through all modules: ``train``, ``num_parameters`` and
``zero_grad``. ``measure`` trains small models of transformers, with LoRA and without, and writes a line for each model:
the number of its modules, and the median seconds of the three calls together. ``fit`` needs no GPU. It reads
trainer_steps.jsonl of the folder experiments/evidence/prediction_h200, and writes trainer_steps.md and
trainer_steps.json into it: the seconds for each module on the reference host, of each model and in the median.
"""

import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from experiments.prediction.times.calibrate import measure_host, this_machine
from provision.temporary import TemporaryFolder
from tests.benchmarks.prediction.host_times.checkpointing import BATCH, SIZES, TOKENS, VOCABULARY, build
from tests.benchmarks.prediction.tables import EVIDENCE, markdown, write

WARM_UP, STEPS = 3, 20


def add_lora(model: Any) -> Any:
    """Return the model with LoRA at all linear layers."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))


def measure_model(model_type: str, with_lora: bool) -> dict[str, Any]:
    """Return the number of a model's modules, and the median seconds of the three calls after a backward pass."""
    import torch

    model = add_lora(build(model_type)) if with_lora else build(model_type)
    tokens = torch.randint(VOCABULARY, (BATCH, TOKENS), device="cuda")
    calls_s = []
    for _ in range(WARM_UP + STEPS):
        model(input_ids=tokens, labels=tokens).loss.backward()
        torch.cuda.synchronize()
        begun_s = time.perf_counter()
        model.train()
        model.num_parameters(exclude_embeddings=True)
        model.zero_grad()
        calls_s.append(time.perf_counter() - begun_s)
    modules = sum(1 for _ in model.modules())
    return {"model": model_type, "lora": with_lora, "modules": modules, "calls": median(calls_s[WARM_UP:])}


def measure(file: Path) -> None:
    """Append a line with the speed of this machine's host relative to the reference host, and one for each model."""
    with TemporaryFolder("host") as folder:
        machine = this_machine(
            " ".join(["python -m tests.benchmarks.prediction.host_times.trainer_steps", *sys.argv[1:]])
        )
        found: list[dict[str, Any]] = [{"host_ratio": measure_host(folder / "host.jsonl", machine, print)}]
    found += [measure_model(model_type, with_lora) for model_type in SIZES for with_lora in (False, True)]
    with file.open("a") as out:
        out.writelines(json.dumps(line) + "\n" for line in found)


def fit() -> None:
    """Write the seconds for each module."""
    first, *lines = [json.loads(line) for line in (EVIDENCE / "trainer_steps.jsonl").read_text().splitlines()]
    ratio = first["host_ratio"]
    of_module_s = [line["calls"] / line["modules"] / ratio for line in lines]
    cells = [
        [
            line["model"] + (", LoRA" if line["lora"] else ""),
            str(line["modules"]),
            f"{1e3 * line['calls']:.1f}",
            f"{1e6 * seconds:.1f}",
        ]
        for line, seconds in zip(lines, of_module_s, strict=True)
    ]
    text = markdown(["model", "modules", "three calls, ms", "of a module on the reference host, us"], cells)
    text += (
        f"\nEach module: {1e6 * median(of_module_s):.1f} us (median). The host of the measured calls needs {ratio:.2f}"
        " times as long as the reference host.\n"
    )
    write(EVIDENCE, "trainer_steps", text, {"modules_s": median(of_module_s), "of_module_s": of_module_s})


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["measure", file]:
            measure(Path(file))
        case ["fit"]:
            fit()
        case _:
            sys.exit(__doc__)
