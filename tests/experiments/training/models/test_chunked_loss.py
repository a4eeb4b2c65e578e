"""The loss in chunks of tokens: the same training up to rounding, and models for which it is impossible."""

import copy
from typing import Any

import pytest
import torch
import transformers
from lightning.fabric.plugins import MixedPrecision
from litgpt.model import GPT
from litgpt.utils import chunked_cross_entropy
from torch.autograd.graph import saved_tensors_hooks

from experiments.errors import InputError
from experiments.suites.settings import Settings
from experiments.training.models import chunked_loss, litgpt
from experiments.training.models.chunked_loss import IGNORED_TARGET, ChunkedCrossEntropy, chunk_causal_loss
from experiments.training.models.litgpt import build_litgpt
from experiments.training.rank import run_rank
from tests.support.training.tiny_rows import LLAMA, LORA, OPT, T5, TEXT, spec

LITGPT: dict[str, Any] = {
    "engine": "litgpt",
    "model": LLAMA,
    "dataset": "constant",
    "max_length": 32,
    "warmup_steps": 1,
}
CAUSAL = TEXT | {"train_samples": 6}
LITGPT_TRAINER = LITGPT | {"engine": "litgpt_trainer", "warmup_steps": 0}
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 100,
}
TOKENS = torch.arange(2 * 21).reshape(2, 21) * 7 % 100
LABELS = TOKENS.clone().index_fill(1, torch.tensor([0, 3, 20]), IGNORED_TARGET)
LARGEST_ROUNDING = 1e-6


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(chunked_loss, "CHUNK_TOKENS", 8)


def litgpt_model(**changes):
    torch.manual_seed(0)
    return build_litgpt(spec(**LITGPT | changes), torch.device("cpu"))


def causal_model(kind="llama", **changes):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **SIZES | changes)
    return transformers.AutoModelForCausalLM.from_config(config)


def gradients_of(model, loss):
    loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters()}


def assert_same_gradients(usual, found):
    assert usual.keys() == found.keys()
    for name, gradient in usual.items():
        assert (found[name] - gradient).abs().max() <= LARGEST_ROUNDING * gradient.abs().max(), name


def losses_of_litgpt(cross_entropy, model, as_list):
    """Return the loss as LitGPT's loops compute it: full passes all logits, lora a list of them."""
    logits = model(TOKENS, lm_head_chunk_size=8 if as_list else 0)
    if as_list:
        logits[-1] = logits[-1][..., :-1, :]
        return cross_entropy(logits, LABELS[..., 1:])
    return cross_entropy(logits[..., :-1, :], LABELS[..., 1:])


@pytest.mark.parametrize("as_list", [False, True])
def test_loss_and_gradients_of_litgpt_are_the_same_up_to_rounding(as_list):
    model = litgpt_model()
    usual_loss = losses_of_litgpt(chunked_cross_entropy, model, as_list)
    usual = gradients_of(model, usual_loss)
    model.zero_grad()
    loss = losses_of_litgpt(ChunkedCrossEntropy(model), model, as_list)
    torch.testing.assert_close(loss, usual_loss, rtol=LARGEST_ROUNDING, atol=0.0)
    assert_same_gradients(usual, gradients_of(model, loss))


def test_a_batch_without_targets_has_no_loss_in_litgpt():
    model = litgpt_model()
    loss = ChunkedCrossEntropy(model)(model(TOKENS), torch.full_like(TOKENS, IGNORED_TARGET))
    assert loss.item() == 0.0


def test_the_output_layer_runs_in_the_precision_that_fabric_sets():
    model, hidden = litgpt_model(), torch.randn(1, 4, 256)
    kinds = []
    model.lm_head.forward = lambda states: kinds.append(torch.mm(states.float(), states.float().T).dtype) or states
    ChunkedCrossEntropy(model, MixedPrecision("bf16-mixed", "cpu"))(hidden, torch.zeros(1, 4, dtype=torch.int64))
    assert kinds == [torch.bfloat16]


@pytest.mark.parametrize("items", [None, 7, torch.tensor(7)], ids=str)
@pytest.mark.parametrize("kind", ["llama", "nemotron", "gpt2"])  # nemotron passes the vocabulary's size by position
def test_loss_and_gradients_of_transformers_are_the_same_up_to_rounding(kind, items):
    model = causal_model(kind).eval()  # without dropout
    chunked = copy.deepcopy(model)
    chunk_causal_loss(chunked)
    options = {} if items is None else {"num_items_in_batch": items}
    usual_loss, loss = (one(input_ids=TOKENS, labels=LABELS, **options).loss for one in (model, chunked))
    torch.testing.assert_close(loss, usual_loss, rtol=LARGEST_ROUNDING, atol=0.0)
    assert_same_gradients(gradients_of(model, usual_loss), gradients_of(chunked, loss))


@pytest.mark.parametrize("library", ["litgpt", "transformers"])
def test_only_the_logits_of_one_chunk_exist_at_a_time(library, monkeypatch):
    monkeypatch.setitem(litgpt.TINY_SETTINGS, "vocab_size", SIZES["vocab_size"])
    model = litgpt_model() if library == "litgpt" else causal_model()
    compute, saved, computed = model.lm_head.forward, [], []
    model.lm_head.forward = lambda hidden: computed.append(compute(hidden)) or computed[-1]
    with saved_tensors_hooks(lambda tensor: saved.append(tensor.shape) or tensor, lambda tensor: tensor):
        if library == "litgpt":
            loss = losses_of_litgpt(ChunkedCrossEntropy(model), model, as_list=False)
        else:
            chunk_causal_loss(model)
            loss = model(input_ids=TOKENS, labels=LABELS).loss
    words, tokens = model.lm_head.weight.shape[0], [len(logits) for logits in computed]
    assert not [shape for shape in saved if shape[-1:] == (words,)]
    assert max(tokens) == chunked_loss.CHUNK_TOKENS
    loss.backward()
    assert [len(logits) for logits in computed] == [*tokens, *reversed(tokens)]


@pytest.mark.parametrize(
    "row",
    [
        LITGPT,
        LITGPT | {"lora": LORA | {"targets": ["query", "head"]}},
        LITGPT | {"packing": True},
        LITGPT | {"optimizer_in_backward": True},
        LITGPT | {"activation_offload": True},
        LITGPT_TRAINER,
        CAUSAL,
        CAUSAL | {"lora": LORA | {"targets": ["q_proj", "lm_head"]}},
        {"model": OPT},
        {"model": OPT, "activation_checkpointing": True},
    ],
    ids=str,
)
def test_a_row_of_each_engine_has_the_same_losses_as_without_chunked_loss(row, tmp_path):
    usual, found = (run_rank(spec(**row, chunked_loss=chunked), tmp_path) for chunked in (False, True))
    assert found.failure is None, found.failure
    assert len(usual.losses) > 1
    assert found.losses[:3] == pytest.approx(usual.losses[:3], rel=LARGEST_ROUNDING)


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
@pytest.mark.parametrize("row", [LITGPT, LITGPT_TRAINER, CAUSAL], ids=lambda row: row["engine"])
def test_the_first_loss_of_a_row_in_16_bit_is_the_same_as_without_chunked_loss(row, precision, tmp_path):
    changed = spec(**row, precision=precision, chunked_loss=True)
    usual, found = (run_rank(one, tmp_path) for one in (spec(**row, precision=precision), changed))
    assert found.failure is None, found.failure
    assert found.losses[0] == pytest.approx(usual.losses[0], rel=LARGEST_ROUNDING)


def test_the_loss_function_of_litgpt_is_replaced_only_while_the_row_runs(tmp_path):
    from litgpt.finetune import full

    run_rank(spec(**LITGPT, chunked_loss=True), tmp_path)
    assert full.chunked_cross_entropy is chunked_cross_entropy
    assert GPT.forward(litgpt_model(), TOKENS).shape[-1] == litgpt.TINY_SETTINGS["vocab_size"]


@pytest.mark.parametrize(
    ("kind", "options"),
    [("gemma2", {"head_dim": 8}), ("cohere", {}), ("granite", {"logits_scaling": 2.0})],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_transformers_models_that_change_their_logits_are_rejected(kind, options):
    model = causal_model(kind, pad_token_id=0, **options)
    chunk_causal_loss(model)
    with pytest.raises(InputError, match=r"chunked_loss: not possible for \w+, which changes the logits"):
        model(input_ids=TOKENS, labels=LABELS)


def test_transformers_models_that_change_their_logits_in_place_are_rejected():
    model = causal_model()
    chunk_causal_loss(model)
    hidden = model.lm_head(torch.randn(2, 21, SIZES["hidden_size"]))
    hidden *= 2
    with pytest.raises(InputError, match="LlamaForCausalLM, which changes the logits"):
        model.loss_function(hidden, LABELS, SIZES["vocab_size"])


def test_models_with_a_loss_of_their_own_are_rejected(tmp_path):
    with pytest.raises(InputError, match="Blip2ForConditionalGeneration, which has a loss of its own"):
        run_rank(spec(model=T5, chunked_loss=True), tmp_path)
    config = transformers.AutoConfig.for_model("bert", **SIZES, num_labels=2)
    with pytest.raises(InputError, match="BertForSequenceClassification, which has a loss of its own"):
        chunk_causal_loss(transformers.AutoModelForSequenceClassification.from_config(config))


def test_litgpts_models_that_change_their_logits_are_rejected(monkeypatch):
    monkeypatch.setitem(litgpt.TINY_SETTINGS, "final_logit_softcapping", 30.0)
    litgpt_model()
    with pytest.raises(InputError, match=r"tiny-llama-1\.1b, which changes the logits"):
        litgpt_model(chunked_loss=True)


def test_transformers_4_is_rejected(monkeypatch):
    monkeypatch.setattr(chunked_loss, "VERSION_5", False)
    with pytest.raises(InputError, match="chunked_loss: needs Transformers 5"):
        chunk_causal_loss(causal_model())


def test_chunked_loss_is_rejected_for_rows_on_several_gpus():
    data = spec().settings.model_dump() | {"chunked_loss": True, "global_batch_size": None}
    with pytest.raises(ValueError, match="chunked_loss = True: needs world_size = 1, but it is 2"):
        Settings.model_validate(data | {"devices": 2, "strategy": "ddp"})
