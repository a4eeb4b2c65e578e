"""Fit the time that the host needs for activation checkpointing, in addition to the repeated forward pass.

    python -m tests.benchmarks.prediction.host_times.checkpointing measure FILE   on a GPU
    python -m tests.benchmarks.prediction.host_times.checkpointing fit

``measure`` trains small models of transformers with checkpointing and without, in turns, and writes a line for each
model: the median seconds of the host in each pass, and the number of layers. The layers are so small that the host
limits each pass. ``fit`` needs no GPU. It reads checkpointing.jsonl of the folder
experiments/evidence/prediction_h200, and writes checkpointing.md and checkpointing.json into it: the additional seconds
for each checkpointed layer, of each model and in the median.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.prediction.tables import EVIDENCE, markdown, write

LAYERS, HIDDEN, HEADS, VOCABULARY, BATCH, TOKENS = 24, 128, 4, 512, 2, 32
"""Sizes of the models and of a batch."""
ROUNDS, PAIRS_OF_ROUND = 8, 6
PASSES = ("forward", "backward")
SIZES: Mapping[str, Mapping[str, Any]] = {
    "gpt2": {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS},
    "llama": {
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
    },
    "opt": {
        "hidden_size": HIDDEN,
        "word_embed_proj_dim": HIDDEN,
        "ffn_dim": 2 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
    },
    "qwen2": {
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS // 2,
    },
    "t5": {
        "d_model": HIDDEN,
        "d_kv": HIDDEN // HEADS,
        "d_ff": 2 * HIDDEN,
        "num_layers": LAYERS,
        "num_heads": HEADS,
        "decoder_start_token_id": 0,
    },
}


def build(model_type: str) -> Any:
    """Return a model with small layers in bfloat16 on the GPU."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = AutoConfig.for_model(model_type, vocab_size=VOCABULARY, use_cache=False, **SIZES[model_type])
    of_task = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model: Any = of_task.from_config(config, dtype=torch.bfloat16)
    return model.cuda().train()


def measure_step(model: Any, tokens: Any) -> dict[str, float]:
    """Return the host's seconds in each pass. Before each pass, the host waits for the GPU."""
    import torch

    torch.cuda.synchronize()
    begun_s = time.perf_counter()
    loss = model(input_ids=tokens, labels=tokens).loss
    forward_s = time.perf_counter() - begun_s
    torch.cuda.synchronize()
    begun_s = time.perf_counter()
    loss.backward()
    backward_s = time.perf_counter() - begun_s
    model.zero_grad()
    return {"forward": forward_s, "backward": backward_s}


def measure_model(model_type: str) -> dict[str, Any]:
    """Return the median seconds of the host in each pass, without and with checkpointing."""
    import torch

    model = build(model_type)
    tokens = torch.randint(VOCABULARY, (BATCH, TOKENS), device="cuda")
    steps: dict[str, list[dict[str, float]]] = {"without": [], "with": []}
    for round_number in range(ROUNDS + 1):
        for name, switch in (
            ("without", model.gradient_checkpointing_disable),
            ("with", model.gradient_checkpointing_enable),
        ):
            switch()
            found = [measure_step(model, tokens) for _ in range(PAIRS_OF_ROUND)]
            steps[name] += found[1:] if round_number else []
    medians = {name: {each: median(one[each] for one in found) for each in PASSES} for name, found in steps.items()}
    layers = LAYERS * (2 if model.config.is_encoder_decoder else 1)
    return {"model": model_type, "layers": layers, **medians}


def additional_s(without: Mapping[str, float], with_checkpointing: Mapping[str, float]) -> float:
    """Return the host's seconds that checkpointing adds, without those of the repeated forward pass itself."""
    return sum(with_checkpointing.values()) - sum(without.values()) - without["forward"]


def measure(file: Path) -> None:
    """Measure all models, and append a line for each."""
    for model_type in SIZES:
        found = measure_model(model_type)
        print(found, flush=True)
        with file.open("a") as out:
            out.write(json.dumps(found) + "\n")


def fit() -> None:
    """Fit the constant and write the table."""
    lines = [json.loads(line) for line in (EVIDENCE / "checkpointing.jsonl").read_text().splitlines()]
    of_layer = {one["model"]: additional_s(one["without"], one["with"]) / one["layers"] for one in lines}
    constant = median(of_layer.values())
    cells = [
        [
            one["model"],
            str(one["layers"]),
            *(f"{1000 * one[name][each]:.1f}" for name in ("without", "with") for each in PASSES),
            f"{1000 * of_layer[one['model']]:.2f}",
        ]
        for one in lines
    ]
    head = ["model", "layers", "forward, ms", "backward, ms", "checkpointing: forward, ms", "backward, ms", "added, ms"]
    text = markdown(head, cells) + f"\nAdded for each checkpointed layer: {1000 * constant:.2f} ms (median)\n"
    write(EVIDENCE, "checkpointing", text, {"checkpoints_s": constant, "of_layer_s": of_layer})


def main(words: Sequence[str]) -> None:
    """Measure on a GPU, or fit the stored measurements."""
    if words[0] == "measure":
        measure(Path(words[1]))
    else:
        fit()


if __name__ == "__main__":
    main(sys.argv[1:])
