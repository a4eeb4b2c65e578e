"""Training with the lab's versions of the small libraries, placed before those of this environment.

The libraries are installed from the package index once and cached (13 MB). PyTorch, bitsandbytes and all others are
current; `make test-as-taught` runs every tiny row with the complete list.
"""

import hashlib
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from experiments.system.files import cache_folder
from provision.configure.build_context import PROJECT
from tests.support.training import tiny_rows
from tests.support.training.tiny_rows import GPT_NEO, LLAMA, LORA, LORA_T5, NF4, OPT, T5
from tests.testbed.node.base_image import PIP
from tests.testbed.openstack.environment import locked

PINS = (PROJECT / "containers" / "as-taught.txt").read_text().splitlines()
NAMES = ("datasets", "huggingface-hub", "lightning", "litgpt", "tokenizers", "transformers")
OLD = [pin for pin in PINS if pin.partition("==")[0] in NAMES]
LITGPT = {"model": LLAMA, "engine": "litgpt", "dataset": "constant", "warmup_steps": 1}
LORA_LITGPT = LORA | {"targets": ["query", "value"]}
TEXTS = {"model": GPT_NEO, "engine": "hf_trainer", "dataset": "constant"}
ROWS: dict[str, dict[str, Any]] = {
    "blip2-opt": {"model": OPT, "input": "with-image", "activation_checkpointing": True},
    "blip2-t5": {"model": T5, "lora": LORA_T5},
    "blip2-t5-4bit": {"model": T5, "lora": LORA_T5, "quantization": NF4},
    "hf-trainer": {**TEXTS, "lora": LORA},
    "generate": {**TEXTS, "task": "generate"},
    "litgpt": LITGPT,
    "litgpt-lora": {**LITGPT, "lora": LORA_LITGPT},
    "litgpt-4bit": {**LITGPT, "lora": LORA_LITGPT, "quantization": NF4},
    "litgpt-trainer": {"model": LLAMA, "engine": "litgpt_trainer", "dataset": "constant"},
}
TRAIN = """
import json, sys
from pathlib import Path
from experiments.results.provenance import versions
from experiments.suites.row_spec import RowSpec
from experiments.training import rank
out = Path(sys.argv[1])
measurements = {row: rank.run_rank(RowSpec.model_validate(spec), out) for row, spec in json.load(sys.stdin).items()}
outcomes = {row: f"{measured.outcome} {measured.reason}" for row, measured in measurements.items()}
(out / "outcomes.json").write_text(json.dumps({"versions": versions(), "rows": outcomes}))
"""


@pytest.fixture(scope="module")
def libraries():
    """Folder with the old libraries, for the front of the import path."""
    folder = cache_folder() / f"as-taught-{hashlib.sha256(repr(OLD).encode()).hexdigest()[:12]}"
    with locked(folder):
        if not folder.exists():
            partial = folder.with_name(f"{folder.name}.part")
            install = [*PIP, "install", "--upgrade", "--no-deps", "--no-compile", "--target", str(partial)]
            subprocess.run([*install, *OLD], check=True)
            partial.rename(folder)
    return folder


@pytest.fixture
def python(libraries):
    """Run this Python with the old libraries."""

    def run(*arguments, **options):
        own = {**os.environ, "PYTHONPATH": f"{libraries}:{PROJECT}", "HF_HUB_OFFLINE": "1"}
        return subprocess.run([sys.executable, *arguments], env=own, capture_output=True, text=True, **options)

    return run


def test_every_engine_trains_with_the_library_versions_of_the_labs(python, tmp_path):
    specs = {row: tiny_rows.spec(**changes).model_dump(mode="json") for row, changes in ROWS.items()}
    done = python("-c", TRAIN, tmp_path, input=json.dumps(specs))
    assert done.returncode == 0, done.stderr
    outcomes = json.loads((tmp_path / "outcomes.json").read_text())
    assert f"transformers=={outcomes['versions']['transformers']}" in OLD
    words = {row: outcome.split()[0].strip(",") for row, outcome in outcomes["rows"].items()}
    assert words == dict.fromkeys(ROWS, "fits"), outcomes


def test_predictions_with_transformers_4_are_rejected_in_one_line(python):
    done = python("-m", "experiments", "predict", "slurm_hf_trainer/neo-1gpu", "--card", "v100_32gb")
    assert (done.returncode, done.stdout) == (2, "")
    message = (
        "testbed: predictions need Transformers 5.0 or newer, but 4.47.1 is installed; install the versions of "
        "containers/current.txt"
    )
    assert done.stderr.splitlines() == [message]
