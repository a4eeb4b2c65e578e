"""Compiled blocks: the same training, with one compilation for equal blocks, and none for a new length."""

from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from experiments.suites.settings import Settings
from experiments.training.data import texts as data
from experiments.training.models.build import build_model
from experiments.training.rank import run_rank
from tests.support.training.tiny_rows import LLAMA, OPT, T5, spec

LITGPT: dict[str, Any] = {
    "engine": "litgpt",
    "model": LLAMA,
    "dataset": "alpaca2k",
    "max_length": 512,
    "warmup_steps": 1,
}
ROWS: dict[str, dict[str, Any]] = {
    "litgpt": LITGPT,
    "litgpt, packed": LITGPT | {"packing": True},
    "litgpt_trainer": LITGPT | {"engine": "litgpt_trainer", "warmup_steps": 0},
    "hf_trainer": LITGPT | {"engine": "hf_trainer", "warmup_steps": 0},
    "lightning": LITGPT | {"engine": "lightning", "warmup_steps": 0},
}
MOST_GRAPHS = 3
"""Maximum number of graphs of a training: one for the first length, one for other lengths, one for the maximum."""


class NoMeter:
    """Meter that observes no operation, as on a GPU."""

    def allocated(self):
        return 0

    peak = allocated

    def peak_reserved(self):
        return None

    def begin(self, phase):
        pass

    def track(self, kind, tensors):
        pass

    def end_micro_step(self): ...

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass


@pytest.fixture(autouse=True)
def fresh_compiler(monkeypatch):
    monkeypatch.setattr(data, "TINY_TOKENS", 300)
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ROWS)
def test_a_row_has_the_same_losses_with_few_compilations(name, tmp_path):
    usual = run_rank(spec(**ROWS[name]), tmp_path)
    assert not counters["stats"]
    compiled = run_rank(spec(**ROWS[name], compile=True), tmp_path, NoMeter())
    assert compiled.reason.startswith("fits")
    assert compiled.losses == pytest.approx(usual.losses, rel=1e-5)
    assert len(usual.losses) == 6
    assert 1 <= counters["stats"]["unique_graphs"] <= MOST_GRAPHS


def test_a_row_with_compiled_blocks_of_a_model_for_images_trains(tmp_path):
    """The captions have one length: with a variable length, the capture of T5's blocks takes half a minute."""
    compiled = run_rank(spec(model=T5, compile=True, train_samples=4, dataset="constant"), tmp_path, NoMeter())
    assert compiled.reason.startswith("fits")
    assert len(compiled.losses) == 2
    assert counters["stats"]["unique_graphs"] >= 3


@pytest.mark.parametrize(
    ("model", "kinds"),
    [
        (OPT, {"Blip2EncoderLayer", "Blip2QFormerLayer", "OPTDecoderLayer"}),
        (T5, {"Blip2EncoderLayer", "Blip2QFormerLayer", "T5Block"}),
    ],
)
def test_every_kind_of_block_of_a_model_for_images_is_compiled(model, kinds, monkeypatch):
    requested = []
    monkeypatch.setattr(nn.Module, "compile", lambda block, **options: requested.append(type(block).__name__))
    build_model(spec(model=model, compile=True), torch.device("cpu"))
    assert set(requested) == kinds


def test_the_operations_of_the_first_micro_step_are_counted(tmp_path):
    row = LITGPT | {"dataset": "constant", "max_length": 32}
    counted = [run_rank(spec(**row, compile=on), tmp_path, NoMeter()).speed.tflop_per_sample for on in (False, True)]
    assert counted[0] == counted[1] > 0


def test_a_tiny_model_whose_memory_is_measured_on_a_cpu_is_not_compiled(tmp_path):
    assert run_rank(spec(**LITGPT, compile=True), tmp_path).outcome == "fits"
    assert not counters["stats"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"devices": 2, "strategy": "ddp"}, "compile = True: needs world_size = 1, but it is 2"),
        ({"activation_checkpointing": True}, "compile = True: needs activation_checkpointing = False, but it is True"),
    ],
)
def test_rows_that_cannot_be_compiled_are_rejected(changes, words):
    settings = spec().settings.model_dump() | {"compile": True, "global_batch_size": None}
    with pytest.raises(ValueError, match=words):
        Settings.model_validate(settings | changes)
