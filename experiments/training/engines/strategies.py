"""What a recipe calls a strategy, in Lightning's terms."""

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

STAGES = {"deepspeed_stage_2_offload": 2, "deepspeed_stage_3_offload": 3}


def build_strategy(settings: Settings, device: Device) -> Strategy:
    """The strategy of a row; InputError for one that is not run, or for ranks that nobody started.

    With several ranks this process is one of them, started from outside with torchrun's variables RANK, LOCAL_RANK,
    WORLD_SIZE, MASTER_ADDR and MASTER_PORT. The units of sharding under fsdp are the layers of transformers' models,
    which are of one kind, what checkpointing works on; LitGPT's model is one unit, as the lab sets no policy for it.
    """
    ranks, several = _ranks(settings), settings.world_size > 1
    if settings.strategy == "auto" and not several:
        return OneDevice(torch.device(device.kind, 0))
    if settings.strategy == "ddp" and several:
        return Ddp(cluster_environment=ranks, gradient_as_bucket_view=settings.gradient_as_bucket_view)
    if settings.strategy == "fsdp" and several:
        policy: Any = checkpointed_layers() if settings.engine == "lightning" else None
        sharded = Fsdp if device.kind == "cuda" else CpuFsdp
        return sharded(cluster_environment=ranks, sharding_strategy="FULL_SHARD", auto_wrap_policy=policy)
    if settings.strategy in STAGES:
        offloaded = Offload if device.kind == "cuda" else CpuOffload
        return offloaded(
            cluster_environment=ranks,
            stage=STAGES[settings.strategy],
            offload_optimizer=True,
            logging_batch_size_per_gpu=settings.batch_size,
        )
    raise InputError(
        f"strategy {settings.strategy!r} on {settings.world_size} device(s) is not run;"
        f" allowed: auto on one device, ddp and fsdp on several, {', '.join(STAGES)}"
    )


def _ranks(settings: Settings) -> ClusterEnvironment | None:
    """Where a process of several learns its rank; InputError when it was not started as one of as many as it needs."""
    if settings.world_size == 1:
        return None
    started = os.environ.get("WORLD_SIZE", "none")
    if started != str(settings.world_size):
        raise InputError(f"WORLD_SIZE is {started}, the row needs {settings.world_size} ranks; start it with torchrun")
    return TorchElasticEnvironment()


class StaysOnDevice(Strategy):
    """Ends without copying the model and the optimizer to host memory, which Lightning does and nobody then reads."""

    def teardown(self) -> None:
        self.precision_plugin.teardown()
        if self.accelerator is not None:
            self.accelerator.teardown()


class OneDevice(StaysOnDevice, SingleDeviceStrategy):
    """One device, no communication."""


class Ddp(StaysOnDevice, DDPStrategy):
    """A copy of the model on each device, gradients averaged in buckets."""


class Fsdp(StaysOnDevice, FSDPStrategy):
    """Parameters, gradients and optimizer state sharded over the devices."""


class CpuFsdp(Fsdp):
    """The same on a processor, which FSDP can do when it is told so and Lightning never tells it."""

    def _setup_model(self, model: torch.nn.Module) -> torch.nn.Module:
        return FullyShardedDataParallel(
            model,
            device_id=torch.device("cpu"),
            mixed_precision=self.mixed_precision_config,
            sharding_strategy=self.sharding_strategy,
            **self.kwargs,
        )


class Offload(StaysOnDevice, DeepSpeedStrategy):
    """DeepSpeed's ZeRO with what it offloads in host memory."""


class CpuOffload(Offload):
    """The same on a processor, which DeepSpeed can do and Lightning's checks forbid."""

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu", self.local_rank)

    def setup_environment(self) -> None:
        super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        self.set_world_ranks()
        self._init_deepspeed_distributed()
