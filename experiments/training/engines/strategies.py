"""What a recipe calls a strategy, in Lightning's terms."""

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, SingleDeviceStrategy, Strategy

from experiments.errors import InputError
from experiments.recipe import Settings
from experiments.result import Device


def build_strategy(settings: Settings, device: Device) -> Strategy:
    """The strategy of a row; InputError for one that this engine does not run."""
    if settings.strategy == "auto" and settings.world_size == 1:
        return OneDevice(torch.device(device.kind, 0))
    if settings.strategy == "deepspeed_stage_2_offload":
        kind = Offload if device.kind == "cuda" else CpuOffload
        return kind(stage=2, offload_optimizer=True, logging_batch_size_per_gpu=settings.batch_size)
    raise InputError(
        f"strategy {settings.strategy!r} on {settings.world_size} device(s) is not run by the lightning engine;"
        " allowed: auto on one device, deepspeed_stage_2_offload"
    )


class StaysOnDevice(Strategy):
    """Ends without copying the model and the optimizer to host memory, which Lightning does and nobody then reads."""

    def teardown(self) -> None:
        self.precision_plugin.teardown()
        if self.accelerator is not None:
            self.accelerator.teardown()


class OneDevice(StaysOnDevice, SingleDeviceStrategy):
    """One device, no communication."""


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
