"""DeepSpeed's own optimizers: equal in memory to PyTorch's fused AdamW, and never compiled."""

import pytest

from experiments.errors import InputError
from experiments.system.files import GIB

TRAIN = """
import json, sys, torch, deepspeed

kind, stage, *more = sys.argv[1:]
config = {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True}, "zero_allow_untested_optimizer": True}
buckets = {"reduce_bucket_size": 10**5, "allgather_bucket_size": 10**5, "sub_group_size": 10**7}
config["zero_optimization"] = {"stage": int(stage), **buckets, **json.loads("".join(more) or "{}")}
model, optimizer = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(4))), None
if kind == "client":
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
else:
    config["optimizer"] = {"type": kind}
engine, *_ = deepspeed.initialize(
    model=model, model_parameters=model.parameters(), optimizer=optimizer, config=config
)
for _ in range(9):
    loss = engine(torch.ones(8, 1024, device="cuda", dtype=torch.bfloat16)).float().sum()
    engine.backward(loss)
    engine.step()
"""
STEP_COUNT_GIB = 512 / GIB
"""Memory in which PyTorch's optimizer stores the number of steps. DeepSpeed stores it in Python."""
LAUNCHER = ("deepspeed", "--no_local_rank", "--num_gpus", "2")


@pytest.mark.parametrize("stage", ["1", "2", "3"])
def test_deepspeed_s_adam_needs_the_memory_and_the_time_of_pytorch_s_fused_adam(trace, stage):
    (own,), (client,) = (trace(TRAIN, kind, stage, before=LAUNCHER) for kind in ("AdamW", "client"))
    assert list(own.optimizers) == ["FusedAdam"]
    assert own.steps == client.steps == 2
    assert own.at_peak.optimizer_gib == pytest.approx(client.at_peak.optimizer_gib, abs=STEP_COUNT_GIB)
    assert own.peak_gib == pytest.approx(client.peak_gib, abs=STEP_COUNT_GIB)
    assert own.cards[0].needed_gib == pytest.approx(client.cards[0].needed_gib, abs=STEP_COUNT_GIB)
    optimizer_s = [one.cards[0].time.device_s["optimizer"] for one in (own, client)]
    assert optimizer_s[0] == pytest.approx(optimizer_s[1], rel=0.1)


@pytest.mark.parametrize(
    ("kind", "optimizer", "offload"),
    [
        ("Lamb", "FusedLamb", ""),
        ("Lion", "FusedLion", ""),
        ("Lion", "DeepSpeedCPULion", '{"offload_optimizer": {"device": "cpu"}}'),
        ("Adagrad", "DeepSpeedCPUAdagrad", '{"offload_optimizer": {"device": "cpu"}}'),
    ],
)
def test_the_other_optimizers_that_deepspeed_compiles_take_steps(trace, kind, optimizer, offload):
    (one,) = trace(TRAIN, kind, "2", *filter(None, [offload]), before=LAUNCHER)
    assert (list(one.optimizers), one.steps) == ([optimizer], 2)


def test_all_ranks_of_zero_3_agree_on_the_order_of_layers(trace):
    first, second = trace(TRAIN, "AdamW", "3", before=LAUNCHER, all_ranks=True)
    assert first.peak_gib == second.peak_gib
    assert first.parameters == 4 * 1024 * 1025


def test_a_module_of_deepspeed_without_a_replacement_is_an_error_that_names_it(trace):
    with pytest.raises(InputError, match="DeepSpeed compiles 'quantizer' for the GPU; predictions cannot run it"):
        trace(TRAIN, "AdamW", "3", '{"zero_quantized_weights": true}', before=LAUNCHER)
