import pytest
import torch
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy
from torch.distributed.fsdp import ShardingStrategy
from transformers.models.blip_2.modeling_blip_2 import Blip2EncoderLayer, Blip2QFormerLayer, Blip2VisionModel
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoBlock
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel
from transformers.models.opt.modeling_opt import OPTDecoderLayer
from transformers.models.t5.modeling_t5 import T5Block, T5Stack

from experiments.errors import InputError
from experiments.training.engines.strategies import (
    CpuDeepSpeedOffload,
    CpuFsdp,
    Ddp,
    DeepSpeedOffload,
    Fsdp,
    SingleDevice,
    build_strategy,
)
from tests.support.results.in_memory import CPU, GPU
from tests.support.training.tiny_rows import spec

ON_BOTH = pytest.mark.parametrize("device", [CPU, GPU])


def strategy(device, **settings):
    return build_strategy(spec(**settings).settings, device)


@pytest.fixture
def two_ranks(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)


@ON_BOTH
def test_a_row_on_one_device_uses_the_strategy_for_a_single_device(device):
    built = strategy(device)
    assert type(built) is SingleDevice
    assert (built.root_device.type, built.root_device.index) == (device.kind, 0)


@pytest.mark.parametrize(("device", "kind"), [(CPU, CpuDeepSpeedOffload), (GPU, DeepSpeedOffload)])
@pytest.mark.parametrize("stage", [2, 3])
def test_a_strategy_with_offload_has_its_zero_stage_and_the_optimizer_in_host_memory(device, kind, stage):
    built = strategy(device, strategy=f"deepspeed_stage_{stage}_offload", batch_size=3)
    assert type(built) is kind
    assert isinstance(built, DeepSpeedStrategy)
    assert built.config["zero_optimization"]["stage"] == stage
    assert built.config["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert "offload_param" not in built.config["zero_optimization"]
    assert built.config["train_micro_batch_size_per_gpu"] == 3


def test_a_strategy_with_offload_on_a_machine_without_a_gpu_uses_the_cpu():
    assert strategy(CPU, strategy="deepspeed_stage_2_offload").root_device.type == "cpu"


@ON_BOTH
@pytest.mark.parametrize("in_buckets", [False, True])
def test_ddp_gets_the_setting_gradient_as_bucket_view(two_ranks, device, in_buckets):
    built = strategy(device, strategy="ddp", devices=2, gradient_as_bucket_view=in_buckets)
    assert type(built) is Ddp
    assert isinstance(built, DDPStrategy)
    assert built._ddp_kwargs == {"gradient_as_bucket_view": in_buckets}


@pytest.mark.parametrize(("device", "kind"), [(CPU, CpuFsdp), (GPU, Fsdp)])
def test_fsdp_shards_parameters_gradients_and_optimizer_state(two_ranks, device, kind):
    built = strategy(device, strategy="fsdp", devices=2)
    assert type(built) is kind
    assert isinstance(built, FSDPStrategy)
    assert built.sharding_strategy == ShardingStrategy.FULL_SHARD


LAYERS = (Blip2EncoderLayer, Blip2QFormerLayer, OPTDecoderLayer, T5Block, LlamaDecoderLayer, GPTNeoBlock)


def test_transformers_models_are_sharded_by_layer_and_litgpt_as_one_unit(two_ranks):
    policy = strategy(GPU, strategy="fsdp", devices=2).kwargs["auto_wrap_policy"]
    units = tuple(policy._module_classes)
    assert all(issubclass(layer, units) for layer in LAYERS)
    assert not any(issubclass(whole, units) for whole in (Blip2VisionModel, T5Stack, LlamaModel, torch.nn.Linear))
    whole = strategy(GPU, strategy="fsdp", devices=2, engine="litgpt_trainer", model="open-llama-7b")
    assert whole.kwargs.get("auto_wrap_policy") is None


@pytest.mark.parametrize("name", ["ddp", "fsdp", "deepspeed_stage_3_offload"])
def test_the_strategy_of_one_of_several_ranks_starts_no_other_ranks(two_ranks, name):
    built = strategy(GPU, strategy=name, devices=2)
    assert isinstance(built.cluster_environment, TorchElasticEnvironment)
    assert built.cluster_environment.creates_processes_externally
    built.parallel_devices = [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert (built.global_rank, built.local_rank, built.world_size) == (1, 1, 2)


@pytest.mark.parametrize("world", [None, "4"])
def test_a_wrong_number_of_ranks_is_rejected(monkeypatch, world):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world:
        monkeypatch.setenv("WORLD_SIZE", world)
    message = f"^WORLD_SIZE is {world or 'none'}, the row needs 2 ranks; start it with torchrun$"
    with pytest.raises(InputError, match=message):
        strategy(GPU, strategy="ddp", devices=2)


@pytest.mark.parametrize("settings", [{"devices": 2}, {"strategy": "ddp"}, {"strategy": "fsdp"}])
def test_unsupported_strategies_are_rejected(two_ranks, settings):
    message = r"is not supported; allowed: auto on one device, ddp and fsdp on several, deepspeed_stage_2_offload, deep"
    with pytest.raises(InputError, match=message):
        strategy(CPU, **settings)
