import pytest
from experiments.training.models import chunked_loss
from experiments.training.rank import run_rank
from tests.support.training.tiny_rows import GPT_NEO, LLAMA, LORA, OPT, T5, TEXT, spec

LITGPT = {"engine": "litgpt", "model": LLAMA, "dataset": "constant", "max_length": 32, "warmup_steps": 1}
LITGPT_TRAINER = LITGPT | {"engine": "litgpt_trainer", "warmup_steps": 0}
ADAPTERS = {"lora": LORA | {"targets": ["query", "value", "head"]}}


@pytest.mark.parametrize(
    "row",
    [
        LITGPT,
        LITGPT | {"precision": "bf16-true"},
        LITGPT | {"precision": "bf16-mixed"},
        LITGPT | ADAPTERS,
        LITGPT | {"packing": True},
        LITGPT_TRAINER,
        LITGPT_TRAINER | {"precision": "bf16-true"},
        LITGPT_TRAINER | {"precision": "bf16-mixed"},
        TEXT,
        {"model": OPT},
        TEXT | {"precision": "bf16-mixed"},
        TEXT | {"engine": "lightning"},
        TEXT | {"lora": LORA | {"targets": ["q_proj", "lm_head"]}},
        {"model": T5},
    ],
    ids=str,
)
def test_a_row_of_each_engine_has_the_same_losses(row, monkeypatch, tmp_path):
    monkeypatch.setattr(chunked_loss, "CHUNK_TOKENS", 8)
    usual = run_rank(spec(**row), tmp_path)
    found = run_rank(spec(**row, chunked_loss=True), tmp_path)
    assert found.failure is None, found.failure
    print(found.losses, usual.losses)
    assert found.losses == pytest.approx(usual.losses, rel=1e-6)
    assert len(usual.losses) > 1
