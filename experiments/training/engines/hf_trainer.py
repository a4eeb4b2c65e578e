"""The hf_trainer engine fine-tunes with transformers' Trainer, and generates text (rows of CSC's guide)."""

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
    FingerprintCallback,
    checkpoints_folder,
    completed_steps,
    last_checkpoint,
    save_arguments,
)
from experiments.training.measure.probe import Probe
from experiments.training.measure.schedule import build_schedule
from experiments.training.models.build import build_model
from experiments.training.models.device_map import build_across_gpus, weight_bytes_by_gpu
from experiments.training.models.optimizers import build_optimizer

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


class CpuArguments(TrainingArguments):
    """TrainingArguments for CPUs.

    The device has no index, because model loading and sharding reject an index. Accelerate is told that it runs on
    several GPUs, so that it shards the model as on GPUs.
    """

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
    """Trainer that uses the row's loader and optimizer, and reports forward and backward passes to the probe."""

    def __init__(self, probe: Probe, loader: DataLoader[Any], **options: Any) -> None:
        super().__init__(callbacks=[ProbeTrainerCallback(probe), FingerprintCallback(probe.spec)], **options)
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


class ProbeTrainerCallback(TrainerCallback):
    """Callback that reports the end of each micro-step to the probe, before the gradients are freed.

    The callback ends the training when the probe has measured enough.
    """

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


class SamplingFinished(Exception):
    """Raised when the sequences have all their tokens; ends the generation."""


class StopAfterTokens(BaseStreamer):
    """Streamer that ends the generation after ``tokens`` tokens, including the prompt.

    To count tokens, the host does not wait for the device. The stopping criteria of ``generate`` would wait, because
    they read tensor values.
    """

    def __init__(self, tokens: int) -> None:
        self._remaining_tokens = tokens

    def put(self, value: torch.Tensor) -> None:
        """Count the tokens of ``value``: (batch, tokens) for the prompt, and then (batch,) for each next token."""
        self._remaining_tokens -= value.shape[1] if value.dim() > 1 else 1
        if not self._remaining_tokens:
            raise SamplingFinished

    def end(self) -> None:
        pass


def train(spec: RowSpec, probe: Probe, out: Path) -> None:
    """Train the row's model or generate text with it. Raises InputError for an unsupported strategy.

    Errors of the training are not caught. For text generation, the model is distributed over all GPUs of the row, and
    this process is the only one.
    """
    arguments = build_arguments(spec, probe.device, out)
    several_gpus = spec.settings.task == "generate" and spec.settings.devices > 1
    build: Any = build_across_gpus if several_gpus else build_model
    model: Any = build(spec, probe.device if several_gpus else arguments.device)
    probe.weights_commit = getattr(model.config, "_commit_hash", None)
    if spec.settings.task == "generate":
        probe.set_model(model, tuple)
        probe.param_bytes_by_gpu = weight_bytes_by_gpu(model, spec.settings.devices) if several_gpus else ()
        generate(spec, probe, model)
    else:
        fine_tune(spec, probe, model, arguments)
    if spec.settings.save_model:
        probe.enter_phase("save")
        model.save_pretrained(out / "model")


def fine_tune(spec: RowSpec, probe: Probe, model: Any, arguments: TrainingArguments) -> None:
    """Train the model, resuming from the row's last checkpoint if a killed run left one."""
    data = prepare_data(spec, model.config)
    probe.data_commit = data.commit
    schedule = build_schedule(spec, data.batches_per_epoch)
    loader: Any = data.build_loader(schedule.longest_batch_index)
    trainer = ProbedTrainer(probe, loader, model=model, args=arguments)
    probe.set_model(model, lambda: [trainer.optimizer])
    checkpoints = Path(arguments.output_dir or "")
    checkpoint = last_checkpoint(spec, checkpoints)
    if checkpoint:
        steps = completed_steps(checkpoint)
        probe.resumed_at_step = steps
        schedule = schedule.resumed_at(steps)
        for _ in range(steps * spec.settings.accumulate // data.batches_per_epoch):
            next(iter(loader.batch_sampler))  # shuffles once for each completed epoch
    probe.start(schedule)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def generate(spec: RowSpec, probe: Probe, model: Any) -> None:
    """Generate batch_size continuations of a random prompt, each up to max_length tokens with the prompt.

    The probe measures the generation as one forward pass. Raises InputError for several nodes or a prompt that is too
    long.
    """
    settings = spec.settings
    if settings.nodes > 1:
        raise InputError(f"nodes = {settings.nodes}: text is generated by one process; allowed: 1")
    prompt_length = settings.prompt_length
    if settings.max_length <= prompt_length:
        raise InputError(
            f"max_length = {settings.max_length}: the prompt already has {prompt_length} tokens; allowed: more"
        )
    prompt = torch.randint(model.config.get_text_config().vocab_size, (1, prompt_length), device=model.device)
    probe.before_forward({"input_ids": prompt})
    with suppress(SamplingFinished):
        model.eval().generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=True,
            use_cache=True,
            max_length=settings.max_length,
            num_return_sequences=settings.batch_size,
            pad_token_id=0,
            streamer=StopAfterTokens(settings.max_length),
        )


def build_arguments(spec: RowSpec, device: Device, out: Path) -> TrainingArguments:
    """Return the Trainer's arguments as in CSC's guide: bfloat16 autocast, clipped gradients, no logging or evaluation.

    Arguments of the optimizer are left out, because ProbedTrainer builds the optimizer. If the row has several ranks,
    torchrun must have started this process. Raises InputError for an unsupported strategy or a wrong number of ranks.
    """
    settings = spec.settings
    set_seed(settings.seed)
    if settings.strategy not in ("auto", "ddp", "fsdp"):
        raise InputError(
            f"strategy {settings.strategy!r} is not supported by the hf_trainer engine; allowed: auto, ddp, fsdp"
        )
    arguments_class = TrainingArguments if device.kind == "cuda" else CpuArguments
    arguments = arguments_class(
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
        **save_arguments(spec),
        **(FSDP if settings.strategy == "fsdp" else {}),
    )
    if arguments.world_size != settings.ranks:
        raise InputError(f"{arguments.world_size} rank(s) are running, the row needs {settings.ranks}; use torchrun")
    return arguments
