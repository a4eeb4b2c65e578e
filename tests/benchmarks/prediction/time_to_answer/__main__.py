"""Measure the time and the host memory that `testbed predict` needs for a model of 13B parameters.

    python -m tests.benchmarks.prediction.time_to_answer [--rounds 3]

Two trainings are predicted: the loop of `--model` with transformers' Trainer, and a script whose weights are missing
(`--fake-weights`). Each prediction follows a process that only imports the packages of the training. The overhead is
the time of the whole prediction less that of the imports, which the training needs on a GPU, too. On a machine with
other programs, the CPU time varies less than the elapsed time. It can be shorter for a prediction, which ends its
traced process without Python's clean-up. The library of the phantom device is compiled before, and no prediction is
stored. The host memory is the resident memory of the largest process.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from experiments.prediction.script.store import FOLDER
from experiments.suites.models import models
from experiments.system.files import GIB
from provision.temporary import TemporaryFolder
from provision.words import number_with_noun

MODEL, CARD = "open-llama-13b", "h200_141gb"
SCRIPT = str(Path(__file__).parent / "fine_tune.py")
PREDICT = (sys.executable, "-m", "experiments", "predict", "--card", CARD, "--json")
IMPORTS_OF_LOOP = "import experiments.prediction.loops.trainer, transformers.models.llama.modeling_llama"
Cost = dict[str, float]


def measure(command: Sequence[str], cache: Path) -> Cost:
    """Return the elapsed and the CPU seconds of a command, and the resident memory of its largest process, GiB.

    cache: the cache of the command, from which stored predictions are removed before.
    """
    shutil.rmtree(cache / FOLDER, ignore_errors=True)
    environment, nothing = {**os.environ, "TESTBED_CACHE": str(cache)}, subprocess.DEVNULL
    begun = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=nothing, stderr=nothing)
    _, status, used = os.wait4(process.pid, 0)
    elapsed_s = time.perf_counter() - begun
    assert os.waitstatus_to_exitcode(status) == 0, command
    return {"elapsed_s": elapsed_s, "cpu_s": used.ru_utime + used.ru_stime, "host_gib": used.ru_maxrss * 1024 / GIB}


def compare(imports: Sequence[Cost], predictions: Sequence[Cost]) -> Cost:
    """Return the median seconds of the imports, the predictions and the difference, and the largest host memory."""
    found = {}
    for name in ("elapsed_s", "cpu_s"):
        pairs = [(alone[name], whole[name]) for alone, whole in zip(imports, predictions, strict=True)]
        found[f"imports_{name}"] = median(alone for alone, _ in pairs)
        found[f"prediction_{name}"] = median(whole for _, whole in pairs)
        found[f"overhead_{name}"] = median(whole - alone for alone, whole in pairs)
    return found | {"host_gib": max(one["host_gib"] for one in predictions)}


def write_config(folder: Path) -> str:
    """Write the configuration of the model without weights to ``folder``; return the folder."""
    from experiments.training.models.architecture import build_config

    build_config(models()[MODEL], "full").save_pretrained(folder)
    return str(folder)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with TemporaryFolder("config") as folder, TemporaryFolder("cache") as cache:
        script = [sys.executable, SCRIPT]
        commands = {
            "--model": ([sys.executable, "-c", IMPORTS_OF_LOOP], [*PREDICT, "--model", MODEL]),
            "script": (script, [*PREDICT, "--fake-weights", "--", *script, write_config(folder)]),
        }
        measure(commands["--model"][1], cache)
        costs = {
            name: [[measure(command, cache) for command in pair] for _ in range(rounds)]
            for name, pair in commands.items()
        }
    found = {name: compare(*zip(*pairs, strict=True)) for name, pairs in costs.items()}
    load = f"shared with other programs, {os.getloadavg()[2]:.1f} processes on average"
    machine = f"{number_with_noun(os.cpu_count() or 1, 'core')}, no GPU; {load}"
    print(json.dumps({"model": MODEL, "card": CARD, "rounds": rounds, "machine": machine, "costs": found}, indent=1))


if __name__ == "__main__":
    main()
