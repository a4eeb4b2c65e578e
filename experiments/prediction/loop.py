"""Describe custom trainings and text generations as small programs, which are traced like a user's script."""

from dataclasses import replace

from experiments.errors import InputError
from experiments.prediction.custom import DEFAULT_NEW_TOKENS, LOOP_DESCRIPTIONS, CustomTraining
from experiments.prediction.custom_spec import find_model, lora_targets, reject_invalid_numbers
from experiments.prediction.fit import DEFAULT_LORA_RANK, FSDP_GPU_COUNTS
from experiments.prediction.loops.job import LoopJob, LoopLora

PROGRAMS_PACKAGE = "experiments.prediction.loops"
ROW_LOOPS = ("lightning", "litgpt")
"""Loops whose trainings run as rows, like those of the labs; the other loops run as programs."""
GENERATION_PRECISIONS = ("32-true", "bf16-true", "16-true")
OPTIONS_OF_TRAINING = (
    "accumulate",
    "optim",
    "strategy",
    "activation_checkpointing",
    "activation_offload",
    "chunked_loss",
    "optimizer_in_backward",
    "lora_r",
    "lora_targets",
    "lora_dropout",
    "loop",
    "target_seq",
)
"""Options that only trainings have."""


def program_command(training: CustomTraining) -> list[str]:
    """Return the command line of the program that runs the training.

    Raises InputError if options contradict each other, or if the model cannot be read.
    """
    module = f"{PROGRAMS_PACKAGE}.{'generate' if training.task == 'generate' else training.loop}"
    program = [module, build_job(training).model_dump_json(exclude_defaults=True)]
    if training.devices > training.gpus_per_process:
        return ["torchrun", "--nproc-per-node", str(training.devices), "-m", *program]
    return ["python", "-m", *program]


def build_job(training: CustomTraining) -> LoopJob:
    """Return the job of the program. Raises the errors of ``program_command``."""
    model, name = find_model(training.model)
    reject_invalid_numbers(training, model, name)
    if training.task == "generate":
        _reject_options_of_training(training)
    else:
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
        offload=training.activation_offload,
        chunked_loss=training.chunked_loss,
        step_in_backward=training.optimizer_in_backward,
        lora=adapters,
        fsdp=training.strategy == "fsdp",
        gpus=training.gpus_per_process,
        new_tokens=training.new_tokens or DEFAULT_NEW_TOKENS,
        kv_cache=not training.no_kv_cache,
    )


def describe_training(training: CustomTraining) -> str:
    """Describe the predicted training in one line: loop, batch, precision, optimizer and more."""
    if training.task == "generate":
        return _describe_generation(training)
    loop = LOOP_DESCRIPTIONS[training.loop]
    words = [f"{training.batch} x {training.accumulate} samples of {training.seq} tokens", training.precision]
    words.append(training.optim or "adamw")
    words += [f"{training.quantization} weights"] if training.quantization else []
    words += [f"LoRA rank {training.lora_r}"] if training.lora_r else []
    words += ["activation checkpointing"] if training.activation_checkpointing else []
    words += ["activations on the host"] if training.activation_offload else []
    words += ["chunked loss"] if training.chunked_loss else []
    words += ["optimizer in backward"] if training.optimizer_in_backward else []
    words += [f"{training.devices} GPUs, {training.strategy}"] if training.devices > 1 else []
    others = ", ".join(name for name in LOOP_DESCRIPTIONS if name != training.loop)
    return f"loop: {loop} (others: --loop {others}); {', '.join(words)}"


def samples_of_step(training: CustomTraining) -> int | None:
    """Return the samples of an optimizer step over all GPUs; None for text generation."""
    return training.batch * training.accumulate * training.devices if training.task == "train" else None


def training_as_data(training: CustomTraining) -> dict[str, str]:
    """Return the predicted training as a JSON-compatible object."""
    loop = {"loop": training.loop} if training.task == "train" else {}
    return {"task": training.task, "assumed": describe_training(training), **loop}


def _describe_generation(training: CustomTraining) -> str:
    new_tokens = training.new_tokens or DEFAULT_NEW_TOKENS
    words = [f"{training.batch} prompts of {training.seq} tokens and {new_tokens} new tokens each", training.precision]
    words += [f"{training.quantization} weights"] if training.quantization else []
    words.append("no key-value cache" if training.no_kv_cache else "key-value cache")
    words += [f"layers spread over {training.devices} GPUs"] if training.devices > 1 else []
    return f"text generation: {', '.join(words)}"


def single_changes(training: CustomTraining) -> list[tuple[str, CustomTraining]]:
    """Return single changes that may save memory, cheapest first, as (description, changed training)."""
    return _changes_of_generation(training) if training.task == "generate" else _changes_of_training(training)


def _changes_of_generation(training: CustomTraining) -> list[tuple[str, CustomTraining]]:
    changes = []
    if training.precision == "32-true":
        changes.append(("precision bf16-true", replace(training, precision="bf16-true")))
    changes += [
        (f"{gpus} GPUs", replace(training, devices=gpus)) for gpus in FSDP_GPU_COUNTS if gpus > training.devices
    ]
    if training.quantization is None:
        changes.append(("8-bit weights", replace(training, quantization="8bit")))
    if training.quantization != "4bit":
        changes.append(("4-bit weights", replace(training, quantization="4bit")))
    return changes


def _changes_of_training(training: CustomTraining) -> list[tuple[str, CustomTraining]]:
    changes = []
    if _may_step_in_backward(training) and not training.optimizer_in_backward:
        changes.append(("optimizer in backward", replace(training, optimizer_in_backward=True)))
    if not training.chunked_loss:
        changes.append(("chunked loss", replace(training, chunked_loss=True)))
    if training.precision == "32-true":
        changes.append(("precision bf16-mixed", replace(training, precision="bf16-mixed")))
    if training.precision not in ("bf16-true", "16-true"):
        changes.append(("precision bf16-true", replace(training, precision="bf16-true")))
    if not training.activation_checkpointing:
        changes.append(("activation checkpointing", replace(training, activation_checkpointing=True)))
    if (training.optim or "adamw").startswith("adamw") and training.optim != "adamw_8bit":
        changes.append(("8-bit AdamW", replace(training, optim="adamw_8bit")))
    if training.optim not in ("sgd", "sgd_momentum"):
        changes.append(("SGD", replace(training, optim="sgd")))
    if training.lora_r is None:
        changes.append((f"LoRA, rank {DEFAULT_LORA_RANK}", replace(training, lora_r=DEFAULT_LORA_RANK)))
    if (training.optim or "adamw").startswith("adamw") and training.optim not in ("adamw_8bit", "adamw_cpu"):
        changes.append(("AdamW on the host", replace(training, optim="adamw_cpu", optimizer_in_backward=False)))
    if not training.activation_offload:
        changes.append(("activations on the host", replace(training, activation_offload=True)))
    if training.quantization is None:
        quantized = replace(training, quantization="4bit", lora_r=training.lora_r or DEFAULT_LORA_RANK)
        changes.append((f"4-bit weights and LoRA, rank {quantized.lora_r}", quantized))
    if training.loop == "trainer":
        changes += [
            (f"FSDP over {gpus} GPUs", replace(training, devices=gpus, strategy="fsdp"))
            for gpus in FSDP_GPU_COUNTS
            if gpus > training.devices and training.quantization is None
        ]
    return changes


def _reject_options_of_training(training: CustomTraining) -> None:
    for name in OPTIONS_OF_TRAINING:
        if (value := getattr(training, name)) != getattr(CustomTraining, name):
            option = f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
            raise InputError(f"{option}: not allowed with --task generate, which trains nothing")
    if training.precision.endswith("mixed"):
        raise InputError(
            f"--precision {training.precision}: with --task generate, allowed: {', '.join(GENERATION_PRECISIONS)}"
        )


def _may_step_in_backward(training: CustomTraining) -> bool:
    """Return whether gradients are complete and unscaled in each backward pass of this training."""
    steps_after_each_backward = training.loop == "plain" and training.devices == 1 and training.accumulate == 1
    return steps_after_each_backward and not training.precision.startswith("16") and training.optim != "adamw_cpu"


def _reject_unsupported(training: CustomTraining) -> None:
    if training.optimizer_in_backward and not _may_step_in_backward(training):
        raise InputError(
            "--optimizer-in-backward: allowed with --loop plain, lightning, litgpt; --loop plain needs --devices 1,"
            " --accumulate 1, --precision 32-true, bf16-true or bf16-mixed, and another --optim than adamw_cpu"
        )
    if training.new_tokens is not None or training.no_kv_cache:
        option = "--no-kv-cache" if training.no_kv_cache else f"--new-tokens {training.new_tokens}"
        raise InputError(f"{option}: needs --task generate")
    if training.strategy.startswith("deepspeed") or training.optim == "deepspeed_cpu":
        raise InputError(f"--strategy {training.strategy}: allowed with --loop lightning only")
    if training.strategy == "fsdp" and training.loop == "plain":
        raise InputError("--strategy fsdp: allowed with --loop trainer, lightning, litgpt")
    if training.quantization and training.lora_r is None:
        raise InputError(f"--quantization {training.quantization}: needs --lora-r; quantized weights are not trained")
    if training.quantization and training.strategy == "fsdp":
        raise InputError(f"--quantization {training.quantization}: allowed with --strategy auto, ddp; not fsdp")
