"""Custom trainings in the loop of transformers' Trainer or of plain PyTorch, as small programs that are traced."""

from dataclasses import replace

from experiments.errors import InputError
from experiments.prediction.custom import LOOP_DESCRIPTIONS, CustomTraining
from experiments.prediction.custom_spec import find_model, lora_targets, reject_invalid_numbers
from experiments.prediction.fit import DEFAULT_LORA_RANK, FSDP_GPU_COUNTS
from experiments.prediction.loops.job import LoopJob, LoopLora

PROGRAMS_PACKAGE = "experiments.prediction.loops"
ROW_LOOPS = ("lightning", "litgpt")
"""Loops whose trainings run as rows, like those of the labs; the other loops run as programs."""


def program_command(training: CustomTraining) -> list[str]:
    """Return the command line of the program that runs the training.

    Raises InputError if options contradict each other, or if the model cannot be read.
    """
    module = f"{PROGRAMS_PACKAGE}.{training.loop}"
    program = [module, build_job(training).model_dump_json(exclude_defaults=True)]
    if training.devices > 1:
        return ["torchrun", "--nproc-per-node", str(training.devices), "-m", *program]
    return ["python", "-m", *program]


def build_job(training: CustomTraining) -> LoopJob:
    """Return the job of the program. Raises InputError as ``program_command`` does."""
    model, name = find_model(training.model)
    reject_invalid_numbers(training, model, name)
    _reject_unsupported(training)
    targets = lora_targets(model, training.lora_targets)
    adapters = LoopLora(r=training.lora_r, targets=targets, dropout=training.lora_dropout) if training.lora_r else None
    return LoopJob(
        model=model,
        model_class=training.model_class,
        batch=training.batch,
        seq=training.seq,
        target_seq=training.target_seq,
        accumulate=training.accumulate,
        precision=training.precision,
        optimizer=training.optim or "adamw",
        attention=training.attention,
        quantization=training.quantization,
        checkpointing=training.activation_checkpointing,
        lora=adapters,
        fsdp=training.strategy == "fsdp",
    )


def describe_training(training: CustomTraining) -> str:
    """Describe the training that is predicted: loop, batch, precision, optimizer and more, in one line."""
    loop = LOOP_DESCRIPTIONS[training.loop]
    words = [f"{training.batch} x {training.accumulate} samples of {training.seq} tokens", training.precision]
    words.append(training.optim or "adamw")
    words += [f"{training.quantization} weights"] if training.quantization else []
    words += [f"LoRA rank {training.lora_r}"] if training.lora_r else []
    words += ["activation checkpointing"] if training.activation_checkpointing else []
    words += [f"{training.devices} GPUs, {training.strategy}"] if training.devices > 1 else []
    others = ", ".join(name for name in LOOP_DESCRIPTIONS if name != training.loop)
    return f"loop: {loop} (others: --loop {others}); {', '.join(words)}"


def single_changes(training: CustomTraining) -> list[tuple[str, CustomTraining]]:
    """Return single changes that may save memory, cheapest first, as (description, changed training)."""
    found = []
    if training.precision == "32-true":
        found.append(("precision bf16-mixed", replace(training, precision="bf16-mixed")))
    if training.precision not in ("bf16-true", "16-true"):
        found.append(("precision bf16-true", replace(training, precision="bf16-true")))
    if not training.activation_checkpointing:
        found.append(("activation checkpointing", replace(training, activation_checkpointing=True)))
    if (training.optim or "adamw").startswith("adamw") and training.optim != "adamw_8bit":
        found.append(("8-bit AdamW", replace(training, optim="adamw_8bit")))
    if training.optim not in ("sgd", "sgd_momentum"):
        found.append(("SGD", replace(training, optim="sgd")))
    if training.lora_r is None:
        found.append((f"LoRA, rank {DEFAULT_LORA_RANK}", replace(training, lora_r=DEFAULT_LORA_RANK)))
    if training.quantization is None:
        quantized = replace(training, quantization="4bit", lora_r=training.lora_r or DEFAULT_LORA_RANK)
        found.append((f"4-bit weights and LoRA, rank {quantized.lora_r}", quantized))
    if training.loop == "trainer":
        found += [
            (f"FSDP over {gpus} GPUs", replace(training, devices=gpus, strategy="fsdp"))
            for gpus in FSDP_GPU_COUNTS
            if gpus > training.devices and training.quantization is None
        ]
    return found


def _reject_unsupported(training: CustomTraining) -> None:
    if training.strategy.startswith("deepspeed") or training.optim == "deepspeed_cpu":
        raise InputError(f"--strategy {training.strategy}: allowed with --loop lightning only")
    if training.strategy == "fsdp" and training.loop == "plain":
        raise InputError("--strategy fsdp: allowed with --loop trainer, lightning, litgpt")
    if training.quantization and training.lora_r is None:
        raise InputError(f"--quantization {training.quantization}: needs --lora-r; quantized weights are not trained")
    if training.quantization and training.strategy == "fsdp":
        raise InputError(f"--quantization {training.quantization}: not with --strategy fsdp; allowed: auto, ddp")
