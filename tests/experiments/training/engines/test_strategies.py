import pytest
from lightning.pytorch.strategies import DeepSpeedStrategy

from experiments.errors import InputError
from experiments.training.engines.strategies import CpuOffload, Offload, OneDevice, build_strategy
from tests.experiments.factory import CPU, GPU
from tests.experiments.training.house import spec


def strategy(device, **settings):
    return build_strategy(spec(**settings).settings, device)


@pytest.mark.parametrize("device", [CPU, GPU])
def test_one_device_has_a_strategy_of_its_own(device):
    built = strategy(device)
    assert type(built) is OneDevice
    assert (built.root_device.type, built.root_device.index) == (device.kind, 0)


@pytest.mark.parametrize(("device", "kind"), [(CPU, CpuOffload), (GPU, Offload)])
def test_offload_is_stage_2_with_the_optimizer_in_host_memory(device, kind):
    built = strategy(device, strategy="deepspeed_stage_2_offload", batch_size=3)
    assert type(built) is kind
    assert isinstance(built, DeepSpeedStrategy)
    assert built.config["zero_optimization"]["stage"] == 2
    assert built.config["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert "offload_param" not in built.config["zero_optimization"]
    assert built.config["train_micro_batch_size_per_gpu"] == 3


def test_offload_on_a_processor_stays_on_it():
    assert strategy(CPU, strategy="deepspeed_stage_2_offload").root_device.type == "cpu"


@pytest.mark.parametrize(
    "settings",
    [{"strategy": "ddp"}, {"strategy": "fsdp"}, {"strategy": "deepspeed_stage_3_offload"}, {"devices": 2}],
)
def test_what_this_engine_does_not_run_is_refused(settings):
    with pytest.raises(InputError, match="is not run by the lightning engine; allowed: auto on one device, deepspeed"):
        strategy(CPU, **settings)
