"""Options of `testbed predict --model` for several GPUs and for clipping, and the loops of the labs as programs."""

import json
from importlib.util import find_spec
from shutil import which
from typing import Any

import pytest

from experiments.errors import InputError
from experiments.prediction.custom import CustomTraining
from experiments.prediction.loop import program_command
from experiments.prediction.predict import predict
from experiments.prediction.script.options import ScriptOptions
from experiments.prediction.script.trace import trace_script
from experiments.system.files import GIB
from tests.experiments.prediction.loops.test_generate import CONFIG

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (find_spec("torch") and which("c++")), reason="needs torch and a C++ compiler"),
]
CARD = "a100_80gb"
LOOPS_OF_THE_LABS: dict[str, dict[str, Any]] = {
    "lightning": {"loop": "lightning"},
    "lightning, fsdp": {"loop": "lightning", "devices": 2, "strategy": "fsdp", "precision": "bf16-mixed"},
    "lightning, deepspeed": {
        "loop": "lightning",
        "strategy": "deepspeed_stage_2_offload",
        "precision": "bf16-mixed",
    },
    "litgpt": {"loop": "litgpt", "model": "tiny-llama-1.1b"},
}


@pytest.fixture
def training(tmp_path):
    """Return a training of a tiny model with these options."""
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(CONFIG))

    def build(**options):
        return CustomTraining(str(path), CARD, **{"batch": 2, "seq": 64} | options)

    return build


@pytest.fixture
def traced(capfd, traces_start_warm):
    """Return the prediction of a training."""

    def trace(training):
        (found,) = trace_script(program_command(training), [training.card], lambda _: None, ScriptOptions())
        capfd.readouterr()
        return found

    return trace


@pytest.mark.parametrize("loop", ["plain", "trainer"])
@pytest.mark.parametrize("strategy", ["fsdp", "fsdp2"])
def test_each_rank_of_fsdp_keeps_its_share_of_parameters_and_optimizer_state(training, traced, loop, strategy):
    ranks = 4
    whole = traced(training(loop=loop))
    found = traced(training(loop=loop, strategy=strategy, devices=ranks, precision="bf16-mixed"))
    share_gib = 4 * whole.parameters / GIB / ranks
    assert found.at_peak.params_gib == pytest.approx(share_gib, rel=0.01)
    assert found.at_peak.optimizer_gib == pytest.approx(2 * share_gib, rel=0.01)
    assert (found.model, found.ranks) == ("LlamaForCausalLM", ranks)


def test_fsdp2_shards_a_model_with_adapters(training, traced):
    whole, found = (
        traced(training(loop="trainer", lora_r=8, precision="bf16-mixed", **options))
        for options in ({}, {"strategy": "fsdp2", "devices": 2})
    )
    assert found.at_peak.optimizer_gib == pytest.approx(whole.at_peak.optimizer_gib / 2, rel=0.05)
    assert (found.trainable_parameters, found.ranks) == (whole.trainable_parameters, 2)


def test_fsdp_gathers_no_more_than_two_blocks_and_the_root_at_a_time(training, traced):
    ddp, sharded = (
        traced(training(loop="plain", devices=8, strategy=strategy, precision="bf16-mixed", batch=1, seq=8))
        for strategy in ("ddp", "fsdp2")
    )
    assert sharded.peak_gib < 0.4 * ddp.peak_gib


def test_a_plain_loop_clips_gradients_only_if_a_norm_above_zero_is_given(training, traced):
    options = {"loop": "plain", "optim": "sgd", "batch": 1, "seq": 8}
    off, on = traced(training(**options)), traced(training(clip_gradients=1.0, **options))
    assert off.peak_gib == traced(training(clip_gradients=0.0, **options)).peak_gib
    assert on.cards[0].time.step_s > off.cards[0].time.step_s


def test_adapters_of_experts_are_trained_by_lightning(training, traced, tmp_path):
    asked = training(loop="lightning", lora_r=4)
    (tmp_path / "tiny.json").write_text(json.dumps(CONFIG | {"model_type": "mixtral", "num_local_experts": 2}))
    assert traced(asked).trainable_parameters > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": 2, "strategy": "fsdp"}, "strategy fsdp: FSDP of version 1 cannot train adapters of experts"),
        ({"lora_dropout": 0.1}, r"adapters of all-linear with dropout 0.1 are not supported: lora\.ParamWrapper"),
    ],
)
def test_a_loop_of_the_labs_names_what_it_does_not_support(training, traced, tmp_path, options, message):
    asked = training(loop="lightning", lora_r=4, **options)
    (tmp_path / "tiny.json").write_text(json.dumps(CONFIG | {"model_type": "mixtral", "num_local_experts": 2}))
    with pytest.raises(InputError, match=message):
        traced(asked)


@pytest.fixture(scope="module")
def loops_of_the_labs(library_cache, tmp_path_factory):
    """Return trainings with the loops of the labs and the predictions of their rows, which one tracer makes."""
    tiny = tmp_path_factory.mktemp("model") / "tiny.json"
    tiny.write_text(json.dumps(CONFIG))
    usual: dict[str, Any] = {"model": str(tiny), "card": CARD, "batch": 2, "seq": 64}
    trainings = {name: CustomTraining(**usual | options) for name, options in LOOPS_OF_THE_LABS.items()}
    predict([training.spec for training in trainings.values()], library_cache)
    return {name: (training, *predict([training.spec], library_cache)) for name, training in trainings.items()}


@pytest.mark.parametrize("name", LOOPS_OF_THE_LABS)
def test_a_loop_of_the_labs_needs_the_memory_of_its_row_and_names_its_model_and_modules(
    loops_of_the_labs, traced, name
):
    asked, row = loops_of_the_labs[name]
    found = traced(asked)
    assert (found.peak_gib, found.reserved_gib) == (row.peak_gib, row.reserved_gib)
    assert found.cards[0].needed_gib == row.needed_gib
    assert found.model == ("GPT" if asked.loop == "litgpt" else "LlamaForCausalLM")
    assert found.sample == "a text of 64 tokens"
    assert found.modules
    assert found.host_gib >= (row.host_gib or 0.0)
