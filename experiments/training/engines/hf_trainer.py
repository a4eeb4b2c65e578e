"""Rows of the Slurm guide: transformers' Trainer around its models, and sampling from them."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed
from transformers.generation.streamers import BaseStreamer

from experiments.errors import InputError
from experiments.results.schema import Device
from experiments.suites.row_spec import RowSpec
from experiments.training.data.loaders import prepare_data
from experiments.training.engines.checkpoints import (
    MarkCallback,
    checkpoints_folder,
    dropped_at_the_end,
    last_checkpoint,
    saving,
    steps_of,
)
from experiments.training.measure.probe import Probe
from experiments.training.measure.schedule import schedule_of
from experiments.training.models import build_model
from experiments.training.models.device_map import build_spread
from experiments.training.models.optimizers import build_optimizer

PROMPT_TOKENS = 8
FSDP: dict[str, Any] = {
    "fsdp": "full_shard auto_wrap",
    "fsdp_config": {
        "version": 1,
        "backward_prefetch": "backward_pre",
        "forward_prefetch": False,
        "use_orig_params": True,
        "sync_module_states": True,
        "cpu_ram_efficient_loading": True,
        "state_dict_type": "SHARDED_STATE_DICT",
    },
}


class ProcessorArguments(TrainingArguments):
    """The same on processors: without a number, which loading and sharding refuse, and sharded as if they were GPUs."""

    def __post_init__(self) -> None:
        if self.fsdp:
            self.fsdp_config = FSDP["fsdp_config"] | {"sync_module_states": False, "cpu_ram_efficient_loading": False}
        super().__post_init__()
        self.distributed_state.device = self.device
        if self.fsdp:
            self.distributed_state.distributed_type = DistributedType.MULTI_GPU

    @property
    def device(self) -> torch.device:
        return torch.device(self._setup_devices.type)


class ProbedTrainer(Trainer):
    """The Trainer with a row's loader and optimizer, its forward and backward passes handed to the probe."""

    def __init__(self, probe: Probe, loader: DataLoader[Any], **options: Any) -> None:
        super().__init__(callbacks=[ProbeCallback(probe), MarkCallback(probe.spec)], **options)
        self.probe, self.loader = probe, loader

    def get_train_dataloader(self) -> DataLoader[Any]:
        return self.loader

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        trained: Any = model or self.model
        self.optimizer = build_optimizer(self.probe.spec.settings, trained.parameters())
        return self.optimizer

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], *rest: Any, **options: Any) -> Any:
        self.probe.before_forward(inputs)
        loss: Any = super().compute_loss(model, inputs, *rest, **options)
        self.probe.after_forward(loss)
        self.probe.before_backward()
        return loss

    def training_step(self, *step: Any, **options: Any) -> torch.Tensor:
        loss = super().training_step(*step, **options)
        self.probe.after_backward()
        return loss


class ProbeCallback(TrainerCallback):
    """Hands the end of each micro-step to the probe, before the gradients are freed, and ends the training for it."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        self.probe.before_optimizer_step()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        control.should_training_stop |= self.probe.after_batch()

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        control.should_training_stop |= self.probe.after_batch()


class Sampled(Exception):
    """The sequences have all their tokens."""


class TokenCount(BaseStreamer):
    """Ends the sampling where generate would, by counting; generate asks the device for the values of a tensor."""

    def __init__(self, tokens: int) -> None:
        self._left = tokens

    def put(self, value: torch.Tensor) -> None:
        """Called with the prompt, (batch, tokens), and then with each next token, (batch)."""
        self._left -= value.shape[1] if value.dim() > 1 else 1
        if not self._left:
            raise Sampled

    def end(self) -> None:
        pass


def train(spec: RowSpec, probe: Probe, out: Path) -> None:
    """Run the row; failures pass through as they are raised. Raises InputError for a strategy that is not run here.

    A model to sample from is spread over the row's GPUs, all of this process.
    """
    arguments = build_arguments(spec, probe.device, out)
    spread = spec.settings.task == "generate" and spec.settings.devices > 1 and probe.device.kind == "cuda"
    model: Any = build_spread(spec, probe.device) if spread else build_model(spec, arguments.device)
    probe.weights_commit = getattr(model.config, "_commit_hash", None)
    if spec.settings.task == "generate":
        probe.watch(model, tuple)
        sample(spec, probe, model)
    else:
        fine_tune(spec, probe, model, arguments)
    if spec.settings.save_model:
        probe.enter("save")
        model.save_pretrained(out / "model")


def fine_tune(spec: RowSpec, probe: Probe, model: Any, arguments: TrainingArguments) -> None:
    """Train, from the row's last checkpoint on where an earlier start was killed and left one."""
    data = prepare_data(spec, model.config)
    probe.data_commit = data.commit
    schedule = schedule_of(spec, data.batches)
    loader: Any = data.build(schedule.heaviest_at)
    trainer = ProbedTrainer(probe, loader, model=model, args=arguments)
    probe.watch(model, lambda: [trainer.optimizer])
    checkpoints = Path(arguments.output_dir or "")
    found = last_checkpoint(spec, checkpoints)
    if found:
        probe.resumed_at_step = steps_of(found)
        schedule = schedule.after(steps_of(found))
        for _ in range(steps_of(found) * spec.settings.accumulate // data.batches):
            next(iter(loader.batch_sampler))  # the order of an epoch that is over
    probe.start(schedule)
    with dropped_at_the_end(checkpoints):
        trainer.train(resume_from_checkpoint=str(found) if found else None)


def sample(spec: RowSpec, probe: Probe, model: Any) -> None:
    """Continue a prompt to max_length tokens, batch_size times at once; all of it is one forward phase."""
    settings = spec.settings
    if settings.nodes > 1:
        raise InputError(f"nodes = {settings.nodes}: one process samples from a model; allowed: 1")
    if settings.max_length <= PROMPT_TOKENS:
        raise InputError(f"max_length = {settings.max_length}: the prompt alone has {PROMPT_TOKENS} tokens")
    prompt = torch.randint(model.config.get_text_config().vocab_size, (1, PROMPT_TOKENS), device=model.device)
    probe.before_forward({"input_ids": prompt})
    with suppress(Sampled):
        model.eval().generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=True,
            use_cache=True,
            max_length=settings.max_length,
            num_return_sequences=settings.batch_size,
            pad_token_id=0,
            streamer=TokenCount(settings.max_length),
        )


def build_arguments(spec: RowSpec, device: Device, out: Path) -> TrainingArguments:
    """The guide's arguments: bfloat16 autocast, clipped gradients, nothing logged or evaluated on the way.

    The optimizer's are left out, see ProbedTrainer. Several ranks are started by torchrun, which the arguments find.
    """
    settings = spec.settings
    set_seed(settings.seed)
    if settings.strategy not in ("auto", "ddp", "fsdp"):
        raise InputError(
            f"strategy {settings.strategy!r} is not run by the hf_trainer engine; allowed: auto, ddp, fsdp"
        )
    made = TrainingArguments if device.kind == "cuda" else ProcessorArguments
    arguments = made(
        output_dir=str(checkpoints_folder(spec, out)),
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulate,
        num_train_epochs=settings.max_epochs,
        max_steps=settings.max_steps,
        warmup_steps=settings.warmup_steps,
        bf16=settings.precision != "32-true",
        seed=settings.seed,
        ddp_find_unused_parameters=False,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=device.kind == "cpu",
        **saving(spec),
        **(FSDP if settings.strategy == "fsdp" else {}),
    )
    if arguments.world_size != settings.ranks:
        raise InputError(f"{arguments.world_size} rank(s) are running, the row needs {settings.ranks}; use torchrun")
    return arguments
