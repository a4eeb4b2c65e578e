"""What a recipe calls a strategy, in Lightning's terms."""

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, Strategy

from experiments.errors import InputError
from experiments.recipe import Settings
from experiments.result import Device


def build_strategy(settings: Settings, device: Device) -> Strategy | str:
    """The strategy of a row; InputError for one that this engine does not run."""
    if settings.strategy == "auto":
        return "auto"
    if settings.strategy == "deepspeed_stage_2_offload":
        kind = DeepSpeedStrategy if device.kind == "cuda" else CpuDeepSpeedStrategy
        return kind(stage=2, offload_optimizer=True, logging_batch_size_per_gpu=settings.batch_size)
    raise InputError(
        f"strategy {settings.strategy!r} is not run by the lightning engine; allowed: auto, deepspeed_stage_2_offload"
    )


class CpuDeepSpeedStrategy(DeepSpeedStrategy):
    """The same strategy on a processor, which DeepSpeed can do and Lightning's check forbids."""

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu", self.local_rank)

    def setup_environment(self) -> None:
        super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        self.set_world_ranks()
        self._init_deepspeed_distributed()
