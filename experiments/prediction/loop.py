"""Describe custom trainings and text generations as small programs, which are traced like a user's script."""

from dataclasses import replace
from importlib.util import find_spec
from math import inf
from typing import Literal

from experiments.errors import InputError
from experiments.prediction.custom import (
    DEFAULT_NEW_TOKENS,
    LOOP_DESCRIPTIONS,
    LOOP_STRATEGIES,
    ROW_LOOPS,
    TORCHAO_OPTIMIZERS,
    TRAINER_MAX_GRADIENT_NORM,
    CustomTraining,
    LoopOptimizer,
)
from experiments.prediction.custom_spec import (
    LORA_DROPOUT,
    find_model,
    lora_dropout,
    lora_targets,
    reject_invalid_numbers,
)
from experiments.prediction.fit import DEFAULT_LORA_RANK, FSDP_GPU_COUNTS
from experiments.prediction.loops.job import LoopJob, LoopLora
from experiments.prediction.script.options import ScriptOptions
from experiments.prediction.script.store import PredictionStore
from experiments.suites.cards import cards

PROGRAMS_PACKAGE = "experiments.prediction.loops"
FSDP_VERSIONS: dict[str, Literal[1, 2]] = {"fsdp": 1, "fsdp2": 2}
OPTIMIZER_NAMES = {
    "adamw_fused": "AdamW (fused)",
    "adamw_foreach": "AdamW (foreach)",
    "adamw_loop": "AdamW (neither fused nor foreach)",
    "adamw_cpu": "AdamW on the host",
    "adamw_4bit": "torchao's AdamW in 4 bit",
    "adamw_8bit_torchao": "torchao's AdamW in 8 bit",
    "deepspeed_cpu": "DeepSpeed's AdamW on the host",
}
"""Names of optimizers in the output if they say more than the value of --optim."""
QUANTIZED_ADAMW = ("adamw_8bit", *TORCHAO_OPTIMIZERS)
NOT_IN_BACKWARD = ("adamw_cpu", "deepspeed_cpu", *TORCHAO_OPTIMIZERS)
"""Optimizers that cannot update each parameter in the backward pass: in torchao, the learning rate is a tensor.

adamw_cpu can in the loops of the labs' rows.
"""
GENERATION_PRECISIONS = ("32-true", "bf16-true", "16-true")
OPTIONS_OF_TRAINING = (
    "accumulate",
    "optim",
    "strategy",
    "clip_gradients",
    "activation_checkpointing",
    "activation_offload",
    "chunked_loss",
    "optimizer_in_backward",
    "lora_r",
    "lora_targets",
    "lora_dropout",
    "loop",
    "target_seq",
    "packing",
)
"""Options that only trainings have."""


def program_command(training: CustomTraining) -> list[str]:
    """Return the command line of the program that runs the training.

    Raises InputError if options contradict each other, or if the model cannot be read.
    """
    program = ["-m", *_program(training)]
    if training.devices > training.gpus_per_process or training.strategy.startswith("deepspeed"):
        return ["torchrun", "--nproc-per-node", str(training.devices), *program]
    return ["python", *program]


def trace_options(training: CustomTraining) -> ScriptOptions:
    """Return the options of a trace of the training's program. It is traced only if no prediction is stored.

    The key of a stored prediction contains the configuration of the model, not only the model's name. In the command of
    a program, the card is only a label, so the key always contains the command with the same card. The cards of the
    trace are a separate part of the key.
    """
    options, (model, _) = ScriptOptions(gpus=training.gpus_per_process), find_model(training.model)
    command = program_command(replace(training, card=next(iter(cards()))))
    return replace(options, store=PredictionStore(command, options, [model.model_dump_json()]))


def _program(training: CustomTraining) -> tuple[str, str]:
    """Return the module of the program and its argument."""
    if training.attention == "flash_attention_2" and training.precision == "32-true":
        allowed = "bf16-true, 16-true" if training.task == "generate" else "bf16-true, 16-true, bf16-mixed, 16-mixed"
        raise InputError(f"--precision 32-true: with --attention flash_attention_2, allowed: {allowed}")
    if training.task == "train":
        _reject_unsupported(training)
    if training.task == "train" and training.loop in ROW_LOOPS:
        return f"{PROGRAMS_PACKAGE}.row", training.spec.model_dump_json(exclude_defaults=True)
    module = "generate" if training.task == "generate" else training.loop
    return f"{PROGRAMS_PACKAGE}.{module}", build_job(training).model_dump_json(exclude_defaults=True)


def build_job(training: CustomTraining) -> LoopJob:
    """Return the job that the program gets as its argument. Raises the errors of ``program_command``."""
    model, name = find_model(training.model)
    reject_invalid_numbers(training, model, name)
    if training.task == "generate":
        _reject_options_of_training(training)
    targets = lora_targets(model, training.lora_targets)
    adapters = LoopLora(r=training.lora_r, targets=targets, dropout=training.lora_dropout) if training.lora_r else None
    return LoopJob(
        model=model,
        model_class=training.model_class,
        batch=training.batch,
        seq=training.seq,
        target_seq=training.target_seq,
        packing=training.packing,
        accumulate=training.accumulate,
        precision=training.precision,
        optimizer=training.optim or "adamw",
        clip_norm=training.clip_gradients,
        attention=training.attention,
        quantization=training.quantization,
        checkpointing=training.activation_checkpointing,
        offload=training.activation_offload,
        chunked_loss=training.chunked_loss,
        step_in_backward=training.optimizer_in_backward,
        lora=adapters,
        fsdp=FSDP_VERSIONS.get(training.strategy),
        gpus=training.gpus_per_process,
        new_tokens=training.new_tokens or DEFAULT_NEW_TOKENS,
        kv_cache=not training.no_kv_cache,
    )


def describe_training(training: CustomTraining, sample: str) -> str:
    """Describe the predicted training in one line: loop, batch, precision, optimizer and more.

    sample: what a sample is, such as 'a text of 512 tokens'.
    """
    if training.task == "generate":
        return _describe_generation(training, sample)
    words = [f"{training.batch} x {training.accumulate} samples, each {sample}", training.precision]
    words.append(OPTIMIZER_NAMES.get(training.optimizer, training.optimizer))
    words += [f"gradients clipped at norm {norm:g}"] if (norm := _clip_norm(training)) else []
    words += [f"{training.quantization} weights"] if training.quantization else []
    words += [_describe_adapters(training, training.lora_r)] if training.lora_r else []
    words += [f"{training.attention} attention"] if training.attention else []
    words += ["activation checkpointing"] if training.activation_checkpointing else []
    words += ["activations on the host"] if training.activation_offload else []
    words += ["chunked loss"] if training.chunked_loss else []
    words += ["optimizer in backward"] if training.optimizer_in_backward else []
    words += _describe_gpus(training)
    others = ", ".join(name for name in LOOP_DESCRIPTIONS if name != training.loop)
    return f"loop: {LOOP_DESCRIPTIONS[training.loop]} (others: --loop {others}); {', '.join(words)}"


def _describe_adapters(training: CustomTraining, rank: int) -> str:
    """Describe the adapters: their rank, and their dropout if it is not the usual one."""
    dropout = lora_dropout(find_model(training.model)[0], training.lora_dropout)
    return f"LoRA rank {rank}" + (f", dropout {dropout:g}" if dropout != LORA_DROPOUT else "")


def _clip_norm(training: CustomTraining) -> float:
    """Return the norm at which the loop clips gradients; 0: it does not clip them."""
    default = TRAINER_MAX_GRADIENT_NORM if training.loop == "trainer" else 0.0
    return default if training.clip_gradients is None else training.clip_gradients


def _describe_gpus(training: CustomTraining) -> list[str]:
    if training.devices == 1:
        return [training.strategy] if training.strategy != "auto" else []
    return [f"{training.devices} GPUs, {'ddp' if training.strategy == 'auto' else training.strategy}"]


def samples_of_step(training: CustomTraining) -> int | None:
    """Return the samples of an optimizer step over all GPUs; None for text generation."""
    return training.batch * training.accumulate * training.devices if training.task == "train" else None


def training_as_data(training: CustomTraining, sample: str) -> dict[str, str]:
    """Return the predicted training as a JSON-compatible object. sample: see ``describe_training``."""
    loop = {"loop": training.loop} if training.task == "train" else {}
    return {"task": training.task, "assumed": describe_training(training, sample), **loop}


def _describe_generation(training: CustomTraining, sample: str) -> str:
    new_tokens = training.new_tokens or DEFAULT_NEW_TOKENS
    words = [f"{training.batch} samples, each {sample} and {new_tokens} new tokens", training.precision]
    words += [f"{training.quantization} weights"] if training.quantization else []
    words += [f"{training.attention} attention"] if training.attention else []
    words.append("no key-value cache" if training.no_kv_cache else "key-value cache")
    words += [f"layers spread over {training.devices} GPUs"] if training.devices > 1 else []
    return f"text generation: {', '.join(words)}"


def single_changes(training: CustomTraining) -> list[tuple[str, CustomTraining]]:
    """Return single changes that may save memory, cheapest first, as (description, changed training).

    Changes that contradict the loop or the other options are left out.
    """
    changes = _changes_of_generation(training) if training.task == "generate" else _changes_of_training(training)
    return [change for change in changes if _is_possible(change[1])]


def _is_possible(training: CustomTraining) -> bool:
    try:
        program_command(training)
    except InputError:
        return False
    return True


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
    has_adamw = training.optimizer.startswith("adamw") and training.optimizer not in (*QUANTIZED_ADAMW, "adamw_cpu")
    if has_adamw:
        name: LoopOptimizer = "adam_8bit" if training.loop in ROW_LOOPS else "adamw_8bit"
        changes.append(("8-bit Adam" if training.loop in ROW_LOOPS else "8-bit AdamW", replace(training, optim=name)))
    if has_adamw and training.loop not in ROW_LOOPS:
        changes.append(("4-bit AdamW of torchao", replace(training, optim="adamw_4bit")))
    if training.optim not in ("sgd", "sgd_momentum"):
        changes.append(("SGD", replace(training, optim="sgd")))
    if training.lora_r is None:
        changes.append((f"LoRA, rank {DEFAULT_LORA_RANK}", replace(training, lora_r=DEFAULT_LORA_RANK)))
    if has_adamw:
        changes.append(("AdamW on the host", replace(training, optim="adamw_cpu")))
    if not training.activation_offload:
        changes.append(("activations on the host", replace(training, activation_offload=True)))
    if training.quantization is None:
        quantized = replace(training, quantization="4bit", lora_r=training.lora_r or DEFAULT_LORA_RANK)
        changes.append((f"4-bit weights and LoRA, rank {quantized.lora_r}", quantized))
    if training.devices == 1 and not training.strategy.startswith("deepspeed"):
        offload = replace(training, optim=None, strategy="deepspeed_stage_2_offload")
        changes.append(("DeepSpeed optimizer offload", offload))
    changes += [
        (f"FSDP over {gpus} GPUs", replace(training, devices=gpus, strategy="fsdp"))
        for gpus in FSDP_GPU_COUNTS
        if gpus > training.devices
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
    """Return whether each parameter can be updated in the backward pass: its gradient must be final and unscaled."""
    on_host_in_row = training.optim == "adamw_cpu" and training.loop in ROW_LOOPS
    steps_after_each_backward = training.devices == 1 and training.accumulate == 1 and not training.clip_gradients
    return (
        steps_after_each_backward
        and training.loop != "trainer"
        and not training.precision.startswith("16")
        and (training.optim not in NOT_IN_BACKWARD or on_host_in_row)
    )


def _reject_unsupported(training: CustomTraining) -> None:
    if training.loop not in ROW_LOOPS and training.optimizer_in_backward and not _may_step_in_backward(training):
        raise InputError(
            "--optimizer-in-backward: allowed with --loop plain, lightning, litgpt; --loop plain needs --devices 1,"
            " --accumulate 1, --precision 32-true, bf16-true or bf16-mixed, no --clip-gradients, and another --optim"
            " than adamw_cpu, adamw_4bit, adamw_8bit_torchao"
        )
    if training.new_tokens is not None or training.no_kv_cache:
        option = "--no-kv-cache" if training.no_kv_cache else f"--new-tokens {training.new_tokens}"
        raise InputError(f"{option}: needs --task generate")
    if training.clip_gradients is not None and not 0 <= training.clip_gradients < inf:
        raise InputError(f"--clip-gradients {training.clip_gradients}: allowed: a number of at least 0")
    if training.optim == "deepspeed_cpu" and not training.strategy.startswith("deepspeed"):
        allowed = "deepspeed_stage_2_offload, deepspeed_stage_3_offload"
        raise InputError(f"--optim deepspeed_cpu: needs --loop lightning and --strategy, one of {allowed}")
    if training.optim in TORCHAO_OPTIMIZERS and training.loop not in ROW_LOOPS and find_spec("torchao") is None:
        raise InputError(
            f"--optim {training.optim}: needs the package torchao, which is not installed; install it with: pip install"
            " torchao; without it, adamw_8bit is the AdamW with the smallest state"
        )
    if training.quantization and training.lora_r is None:
        raise InputError(f"--quantization {training.quantization}: needs --lora-r; quantized weights are not trained")
    _reject_unsupported_strategy(training)


def _reject_unsupported_strategy(training: CustomTraining) -> None:
    strategy, allowed = training.strategy, LOOP_STRATEGIES[training.loop]
    if strategy not in allowed:
        loops = ", ".join(loop for loop, strategies in LOOP_STRATEGIES.items() if strategy in strategies)
        raise InputError(
            f"--strategy {strategy}: allowed with --loop {loops}; with {training.loop}, allowed: {', '.join(allowed)}"
        )
    if training.loop == "litgpt" and training.devices > 1:
        raise InputError(f"--devices {training.devices}: with --loop litgpt, allowed: 1")
    if strategy in ("ddp", *FSDP_VERSIONS) and training.devices == 1:
        raise InputError(f"--strategy {strategy}: needs --devices 2 or more")
    if strategy in FSDP_VERSIONS and training.quantization:
        raise InputError(f"--quantization {training.quantization}: allowed with --strategy auto, ddp; not {strategy}")
    has_adapters_in_32_bit = training.lora_r is not None and training.precision in ("bf16-true", "16-true")
    if strategy == "fsdp" and training.loop == "plain" and has_adapters_in_32_bit:
        raise InputError(f"--strategy fsdp: with --lora-r and --precision {training.precision}, allowed: fsdp2")
    if strategy in FSDP_VERSIONS and training.loop == "plain" and training.precision == "16-mixed":
        raise InputError(
            f"--precision 16-mixed: with --loop plain --strategy {strategy}, allowed: 32-true, bf16-true, 16-true,"
            " bf16-mixed"
        )
