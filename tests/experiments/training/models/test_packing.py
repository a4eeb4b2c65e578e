"""Packed texts: the same training as with padding, in which no text attends to another."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from experiments.suites.settings import Settings
from experiments.training.data import texts as data
from experiments.training.data.texts import pack_texts, pad_texts
from experiments.training.models import packing
from experiments.training.models.litgpt import build_litgpt
from experiments.training.models.packing import PackedGPT, PackedLoraGPT
from experiments.training.rank import run_rank
from tests.support.training.tiny_rows import LLAMA, LORA, shots, spec

ROW: dict[str, Any] = {
    "engine": "litgpt",
    "model": LLAMA,
    "dataset": "alpaca2k",
    "max_length": 512,
    "warmup_steps": 1,
    "batch_size": 3,
}
TRAINER = ROW | {"engine": "litgpt_trainer", "warmup_steps": 0}
ADAPTERS = LORA | {"targets": ["query", "value"]}
TEXTS = [torch.arange(count) * 7 % 256 for count in (5, 40, 1, 23)]


LONGEST = 250


@pytest.fixture
def texts_of_different_lengths(monkeypatch):
    monkeypatch.setattr(data, "TINY_TOKENS", LONGEST)


def model_of(packed, **changes):
    torch.manual_seed(0)
    return build_litgpt(spec(**ROW | {"packing": packed} | changes), torch.device("cpu"))


def logits_of_texts(model, texts=TEXTS):
    """Return the logits of each text's tokens."""
    if not isinstance(model, PackedGPT | PackedLoraGPT):
        padded = model(pad_texts(texts)["input_ids"])
        return [row[: len(text)] for row, text in zip(padded, texts, strict=True)]
    batch = pack_texts(texts)
    model.set_texts(batch)
    return list(model(batch["input_ids"])[0].split([len(text) for text in texts]))


@pytest.mark.parametrize("changes", [{}, {"lora": ADAPTERS}, {"model": "open-llama-3b"}], ids=str)
def test_logits_and_gradients_of_packed_texts_are_those_of_padded_texts(changes):
    padded, packed = (model_of(packing, **changes) for packing in (False, True))
    assert type(packed) is (PackedLoraGPT if "lora" in changes else PackedGPT)
    logits = [logits_of_texts(model) for model in (padded, packed)]
    for one, other in zip(*logits, strict=True):
        torch.testing.assert_close(one, other)
    for per_text in logits:
        sum(one.square().sum() for one in per_text).backward()
    for one, other in zip(padded.parameters(), packed.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)


def test_a_text_depends_only_on_its_own_earlier_tokens():
    model = model_of(True)
    changed = [TEXTS[0], TEXTS[1].clone(), *TEXTS[2:]]
    changed[1][20] += 1
    before, after = logits_of_texts(model), logits_of_texts(model, changed)
    assert [torch.equal(one, other) for one, other in zip(before, after, strict=True)] == [True, False, True, True]
    assert torch.equal(before[1][:20], after[1][:20])
    assert not torch.equal(before[1][25], after[1][25])


def test_a_packed_forward_pass_restores_the_position_caches_of_the_model():
    model = model_of(True)
    caches, longest = (model.cos, model.sin), model.max_seq_length
    logits_of_texts(model)
    assert (model.cos is caches[0], model.sin is caches[1], model.max_seq_length) == (True, True, longest)


def flash(q, k, v, starts, key_starts, longest, longest_key, dropout, causal, debug, scale):
    """Return what PyTorch's flash attention for texts of different lengths returns: attention within each text."""
    assert (q.shape[-1] % packing.FLASH_HEAD_SIZE_MULTIPLE, dropout, causal, debug) == (0, 0.0, True, False)
    assert starts is key_starts
    assert (starts.dtype, starts[-1]) == (torch.int32, len(q))
    assert longest == longest_key == max(starts.diff())
    heads_first = (one.transpose(0, 1).split(starts.diff().tolist(), dim=1) for one in (q, k, v))
    attended = [
        scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
        for query, key, value in zip(*heads_first, strict=True)
    ]
    return (torch.cat(attended, dim=1).transpose(0, 1),)


@pytest.mark.parametrize("multiple", [8, 24], ids="heads of a multiple of {}".format)
@pytest.mark.parametrize("model", [LLAMA, "open-llama-3b"])
def test_flash_attention_gets_each_text_and_gives_the_same_logits_and_gradients(monkeypatch, model, multiple):
    padded, packed = (model_of(True, model=model) for _ in range(2))
    before = logits_of_texts(padded)
    monkeypatch.setattr(packing, "_has_flash", lambda device: True)
    monkeypatch.setattr(packing, "FLASH_TYPES", (torch.float32,))
    monkeypatch.setattr(packing, "FLASH_HEAD_SIZE_MULTIPLE", multiple)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", flash)
    monkeypatch.setattr(packing, "_padded_attention", None)
    after = logits_of_texts(packed)
    torch.testing.assert_close(after, before)
    for per_text in (before, after):
        sum(one.square().sum() for one in per_text).backward()
    for one, other in zip(padded.parameters(), packed.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "capability", "found"),
    [("8.0", (8, 0), True), ("9.0", (9, 0), True), ("7.5", (7, 5), False), ("gfx90a:sramecc+", (9, 0), False)],
)
def test_flash_attention_for_packed_texts_needs_an_nvidia_gpu_of_compute_capability_8(
    monkeypatch, architecture, capability, found
):
    properties = SimpleNamespace(gcnArchName=architecture)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert packing._has_flash(torch.device("cuda")) is found


@pytest.mark.usefixtures("texts_of_different_lengths")
@pytest.mark.parametrize("row", [ROW, ROW | {"lora": ADAPTERS}, ROW | {"accumulate": 2}, TRAINER], ids=str)
def test_a_row_with_packed_texts_has_the_losses_of_one_with_padded_texts(row, tmp_path):
    padded, packed = (run_rank(spec(**row, packing=packing), tmp_path) for packing in (False, True))
    assert packed.losses == pytest.approx(padded.losses, rel=1e-5)
    assert len(set(padded.losses)) == 4
    assert packed.max_tokens == padded.max_tokens == LONGEST


@pytest.mark.usefixtures("texts_of_different_lengths")
def test_packed_texts_need_less_memory_for_activations_than_padded_ones(tmp_path):
    memories = [run_rank(spec(**ROW, packing=packing), tmp_path).memory for packing in (False, True)]
    padded, packed = (max(shots(memory, "after forward", "activations_gib")) for memory in memories)
    assert packed < 0.9 * padded


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"engine": "lightning"}, "packing = True: needs engine = litgpt, litgpt_trainer, but it is lightning"),
        ({"dataset": "gourmetgram-captions"}, "packing = True: needs dataset = alpaca2k, imdb, constant"),
        ({"devices": 2, "strategy": "ddp"}, "packing = True: needs world_size = 1, but it is 2"),
    ],
)
def test_rows_that_cannot_be_packed_are_rejected(changes, words):
    settings = spec(**ROW).settings.model_dump() | {"packing": True, "global_batch_size": None}
    with pytest.raises(ValueError, match=words):
        Settings.model_validate(settings | changes)
