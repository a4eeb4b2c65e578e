"""Build Lightning's strategy object for the strategy of a row."""

import os
from typing import Any

import torch
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from torch.distributed.fsdp import FullyShardedDataParallel

from experiments.errors import InputError
from experiments.results.schema import Device
from experiments.suites.settings import Settings
from experiments.training.transformers_compat import checkpointed_layers

ZERO_STAGES = {"deepspeed_stage_2_offload": 2, "deepspeed_stage_3_offload": 3}


def build_strategy(settings: Settings, device: Device) -> Strategy:
    """Return Lightning's object for the row's strategy.

    Raises InputError if the strategy is unsupported, or if the number of started ranks is wrong. With several ranks,
    torchrun has started this process and set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

    With fsdp, each layer of a transformers model is one FSDP unit; activation checkpointing applies to the same layers.
    LitGPT's model is a single FSDP unit, because the lab sets no wrapping policy.
    """
    environment, several = _cluster_environment(settings), settings.world_size > 1
    if settings.strategy == "auto" and not several:
        return SingleDevice(torch.device(device.kind, 0))
    if settings.strategy == "ddp" and several:
        return Ddp(cluster_environment=environment, gradient_as_bucket_view=settings.gradient_as_bucket_view)
    if settings.strategy == "fsdp" and several:
        policy: Any = checkpointed_layers() if settings.engine == "lightning" else None
        fsdp_class = Fsdp if device.kind == "cuda" else CpuFsdp
        return fsdp_class(cluster_environment=environment, sharding_strategy="FULL_SHARD", auto_wrap_policy=policy)
    if settings.strategy in ZERO_STAGES:
        offload_class = DeepSpeedOffload if device.kind == "cuda" else CpuDeepSpeedOffload
        return offload_class(
            cluster_environment=environment,
            stage=ZERO_STAGES[settings.strategy],
            offload_optimizer=True,
            logging_batch_size_per_gpu=settings.batch_size,
        )
    raise InputError(
        f"strategy {settings.strategy!r} on {settings.world_size} device(s) is not supported;"
        f" allowed: auto on one device, ddp and fsdp on several, {', '.join(ZERO_STAGES)}"
    )


def _cluster_environment(settings: Settings) -> ClusterEnvironment | None:
    """Return the object from which Lightning reads this process's rank; None if the row has one rank.

    Raises InputError if the number of started ranks differs from the number that the row needs.
    """
    if settings.world_size == 1:
        return None
    world_size = os.environ.get("WORLD_SIZE", "none")
    if world_size != str(settings.world_size):
        raise InputError(
            f"WORLD_SIZE is {world_size}, the row needs {settings.world_size} ranks; start it with torchrun"
        )
    return TorchElasticEnvironment()


class NoHostCopyStrategy(Strategy):
    """Strategy that does not copy model and optimizer to host memory at the end, as Lightning does."""

    def teardown(self) -> None:
        self.precision_plugin.teardown()
        if self.accelerator is not None:
            self.accelerator.teardown()


class SingleDevice(NoHostCopyStrategy, SingleDeviceStrategy):
    """Strategy for one device, without communication."""


class Ddp(NoHostCopyStrategy, DDPStrategy):
    """Data parallelism: a copy of the model on each device, gradients averaged in buckets."""


class Fsdp(NoHostCopyStrategy, FSDPStrategy):
    """Fully sharded data parallelism: parameters, gradients and optimizer state sharded over the devices."""


class CpuFsdp(Fsdp):
    """Fsdp on a CPU. FSDP supports CPUs, but needs the device id, which Lightning does not pass."""

    def _setup_model(self, model: torch.nn.Module) -> torch.nn.Module:
        return FullyShardedDataParallel(
            model,
            device_id=torch.device("cpu"),
            mixed_precision=self.mixed_precision_config,
            sharding_strategy=self.sharding_strategy,
            **self.kwargs,
        )


class DeepSpeedOffload(NoHostCopyStrategy, DeepSpeedStrategy):
    """DeepSpeed's ZeRO with the optimizer offloaded to host memory."""


class CpuDeepSpeedOffload(DeepSpeedOffload):
    """DeepSpeed's ZeRO with offload on a computer without a GPU.

    DeepSpeed supports this, but Lightning's checks reject it.
    """

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu", self.local_rank)

    def setup_environment(self) -> None:
        super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        self.set_world_ranks()
        self._init_deepspeed_distributed()
