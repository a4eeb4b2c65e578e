"""Compare the tracing speed of the phantom device with torch's own memory tracker on fake tensors.

    python -m tests.benchmarks.prediction.tracing_speed [--rounds 3] [--batch 4] [--tokens 512]

Both trackers trace the same two steps of open-llama-7b (transformers, bfloat16, AdamW), alternating, each time in a new
process. The times include building the model, the steps, and computing the peak; they exclude the start of Python and
the imports. torch's tracker is MemTracker with FakeTensorMode, with fake CPU tensors: a torch without CUDA does not
support fake GPU tensors.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from experiments.suites.cards import card_named
from experiments.suites.models import models
from experiments.system.files import GIB, cache_folder

MODEL, CARD, STEPS = "open-llama-7b", "h200_141gb", 2
SIDES = ("phantom", "tracker")
Seconds = dict[str, float]


def build(device: str) -> tuple[Any, Any]:
    """Return the model in bfloat16 on ``device``, with uninitialized weights, and its optimizer."""
    import torch
    from transformers.initialization import no_init_weights

    from experiments.training.models.architecture import build_config, model_class

    config = build_config(models()[MODEL], "full")
    config.use_cache = False
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device), no_init_weights():
        model = model_class(config)(config)
    return model, torch.optim.AdamW(model.parameters(), foreach=True)


def train(model: Any, optimizer: Any, ids: Any, stepped: Callable[[], None] = lambda: None) -> None:
    """Train two steps; ``stepped`` is called after each."""
    for _ in range(STEPS):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        del loss
        optimizer.step()
        stepped()


def tracker(batch: int, tokens: int) -> Seconds:
    """Trace with torch's memory tracker."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    import_shared_modules()
    took: Seconds = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        with record_seconds(took, "build_s"):
            model, optimizer = build("cpu")
        with record_seconds(took, "steps_s"):
            tracker = MemTracker()
            tracker.track_external(model, optimizer)
            with tracker:
                ids = torch.zeros(batch, tokens, dtype=torch.long)
                train(model, optimizer, ids, tracker.reset_mod_stats)
            peak = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    return took | {"peak_gib": peak / GIB}


def phantom(batch: int, tokens: int) -> Seconds:
    """Trace with the phantom device."""
    from experiments.prediction.phantom.library import load
    from experiments.suites.attention_kernels import kernel_properties

    device, card = load(cache_folder()), card_named(CARD)
    import torch

    from experiments.prediction.phantom.cuda import replace_cuda

    import_shared_modules()
    took: Seconds = {}
    device.install(kernel_properties(card))
    replace_cuda(device, card)
    with record_seconds(took, "build_s"):
        model, optimizer = build("cuda")
    with record_seconds(took, "steps_s"):
        train(model, optimizer, torch.zeros(batch, tokens, dtype=torch.long, device="cuda"))
        peak = device.replay(2**62).peak_allocated
    return took | {"peak_gib": peak / GIB}


def import_shared_modules() -> None:
    """Import the modules that both sides use, so that the measured times exclude the imports."""
    import transformers.models.llama.modeling_llama  # noqa: F401

    import experiments.training.models.architecture  # noqa: F401


@contextmanager
def record_seconds(into: Seconds, name: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    into[name] = time.perf_counter() - begun


def in_fresh_process(side: str, options: argparse.Namespace) -> Seconds:
    sizes = ["--batch", str(options.batch), "--tokens", str(options.tokens)]
    command = [sys.executable, "-m", "tests.benchmarks.prediction.tracing_speed", "--side", side, *sizes]
    begun = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    whole = time.perf_counter() - begun
    found: Seconds = json.loads(done.stdout)
    return found | {"startup_s": whole - found["build_s"] - found["steps_s"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        sides: dict[str, Callable[[int, int], Seconds]] = {"phantom": phantom, "tracker": tracker}
        print(json.dumps(sides[options.side](options.batch, options.tokens)))
        return
    rounds: dict[str, list[Seconds]] = {side: [] for side in SIDES}
    for _ in range(options.rounds):
        for side in SIDES:
            rounds[side].append(in_fresh_process(side, options))
            print(side, rounds[side][-1], file=sys.stderr, flush=True)
    found = {side: {key: median(one[key] for one in took) for key in took[0]} for side, took in rounds.items()}
    traced = {side: median(one["build_s"] + one["steps_s"] for one in took) for side, took in rounds.items()}
    ratios = {
        "ratio": traced["tracker"] / traced["phantom"],
        "ratio_of_the_steps_alone": found["tracker"]["steps_s"] / found["phantom"]["steps_s"],
    }
    sizes = {"model": MODEL, "batch": options.batch, "tokens": options.tokens, "steps": STEPS}
    print(json.dumps({**sizes, "rounds": options.rounds, "medians": found, **ratios}, indent=1))


if __name__ == "__main__":
    main()
