"""Custom trainings and text generations: the options of `testbed predict` and `testbed fit` for any model."""
# ruff: noqa: RUF009 (the fields are declared by a function that returns dataclasses.field)

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from experiments.system.options import option

if TYPE_CHECKING:
    from experiments.suites.row_spec import RowSpec

Task = Literal["train", "generate"]
Loop = Literal["trainer", "plain", "lightning", "litgpt"]
LoopPrecision = Literal["32-true", "bf16-true", "16-true", "bf16-mixed", "16-mixed"]
LoopOptimizer = Literal[
    "adamw",
    "adamw_fused",
    "adamw_foreach",
    "adamw_loop",
    "adamw_cpu",
    "sgd",
    "sgd_momentum",
    "adam_8bit",
    "adamw_8bit",
    "adamw_4bit",
    "adamw_8bit_torchao",
    "paged_adamw",
    "paged_adamw_8bit",
    "adafactor",
    "lion",
    "lion_8bit",
    "deepspeed_cpu",
]
LoopStrategy = Literal["auto", "ddp", "fsdp", "fsdp2", "deepspeed_stage_2_offload", "deepspeed_stage_3_offload"]
Attention = Literal["sdpa", "eager", "flash_attention_2"]
QuantizedBits = Literal["4bit", "8bit"]
TORCHAO_OPTIMIZERS: tuple[LoopOptimizer, ...] = ("adamw_4bit", "adamw_8bit_torchao")
"""Optimizers of torchao, which the project does not install: adamw_torch_4bit and adamw_torch_8bit of transformers."""
LOOP_DESCRIPTIONS: dict[Loop, str] = {
    "trainer": "transformers' Trainer",
    "plain": "a plain PyTorch loop",
    "lightning": "Lightning's Trainer",
    "litgpt": "LitGPT's model in a Fabric loop",
}
LOOP_STRATEGIES: dict[Loop, tuple[LoopStrategy, ...]] = {
    "trainer": ("auto", "ddp", "fsdp", "fsdp2"),
    "plain": ("auto", "ddp", "fsdp", "fsdp2"),
    "lightning": ("auto", "ddp", "fsdp", "deepspeed_stage_2_offload", "deepspeed_stage_3_offload"),
    "litgpt": ("auto",),
}
ROW_LOOPS = ("lightning", "litgpt")
"""Loops whose trainings run with the code of the labs' rows, and have the settings of a row."""
TRAINER_MAX_GRADIENT_NORM = 1.0
"""The norm at which transformers' Trainer clips gradients by default (TrainingArguments.max_grad_norm)."""
DEFAULT_TOKENS = 512
DEFAULT_NEW_TOKENS = 128
MODEL_HELP = (
    "a name that `testbed models` lists, the path of a config.json or of its folder, or an id on the Hugging Face hub "
    "(org/name)"
)


@dataclass(frozen=True)
class CustomTraining:
    """Options of one custom training or text generation.

    batch: samples per GPU and micro-step, or prompts. seq: tokens per text, or per prompt; None: DEFAULT_TOKENS, or
    fewer if the model has fewer positions.
    """

    model: str = option("", f"Model of a custom training: {MODEL_HELP}.", metavar="MODEL")
    card: str = option("", "GPU model; default for rows of a suite: all GPU models of the row.", metavar="CARD")
    batch: int = option(1, "Samples per GPU and micro-step.")
    seq: int | None = option(
        None,
        "Tokens per text; with --packing, per sequence of several texts; with --task generate, per prompt; "
        f"default: {DEFAULT_TOKENS}, or the model's maximum if it is smaller.",
    )
    packing: int | None = option(
        None,
        "Number of texts in each sequence of --seq tokens; the texts do not attend to each other. With --attention "
        "flash_attention_2, the whole batch is one sequence. Only with --loop trainer or plain.",
        metavar="TEXTS",
    )
    task: Task = option("train", "Training, or text generation by transformers' generate.")
    new_tokens: int | None = option(
        None, f"With --task generate: tokens after each prompt; default: {DEFAULT_NEW_TOKENS}."
    )
    no_kv_cache: bool = option(False, "With --task generate: keep no key-value cache.", flag="--no-kv-cache")
    accumulate: int = option(1, "Micro-steps per optimizer step.")
    devices: int = option(1, "Number of GPUs; with --task generate, they share the layers, as in device_map=auto.")
    precision: LoopPrecision = option(
        "32-true", "Precision of weights and arithmetic; bf16-mixed is bf16=True of transformers' Trainer."
    )
    optim: LoopOptimizer | None = option(
        None,
        "Optimizer. Default: adamw (with --loop trainer its fused variant, with other loops its foreach variant), but "
        "deepspeed_cpu with DeepSpeed. adamw_4bit and adamw_8bit_torchao need the package torchao.",
    )
    strategy: LoopStrategy = option(
        "auto",
        "How GPUs share the work. auto: DDP if there are several GPUs. fsdp2: PyTorch's fully_shard, only with --loop "
        "trainer or plain.",
    )
    clip_gradients: float | None = option(
        None,
        f"Norm at which gradients are clipped, 0: never; default: {TRAINER_MAX_GRADIENT_NORM} for --loop trainer, "
        "else 0.",
    )
    activation_checkpointing: bool = option(
        False, "Recompute activations in the backward pass.", flag="--activation-checkpointing"
    )
    activation_offload: bool = option(
        False, "Keep activations in host memory between forward and backward pass.", flag="--activation-offload"
    )
    chunked_loss: bool = option(
        False,
        "Compute output layer and loss for a few tokens at a time, and again in the backward pass.",
        flag="--chunked-loss",
    )
    optimizer_in_backward: bool = option(
        False,
        "Update each parameter in the backward pass; only with --loop plain, lightning, litgpt.",
        flag="--optimizer-in-backward",
    )
    lora_r: int | None = option(None, "Rank of LoRA adapters; default: all weights are trained.")
    lora_targets: str | None = option(None, "Layers with adapters, comma-separated, or all-linear.")
    loop: Loop = option("trainer", "Training loop; trainer: transformers' Trainer.")
    model_class: str | None = option(
        None, "Model class of transformers; default: the class that config.json names.", metavar="CLASS"
    )
    target_seq: int | None = option(None, "Tokens per target text of an encoder-decoder model; default: as --seq.")
    attention: Attention | None = option(
        None, "Attention implementation; flash_attention_2 needs a precision in 16 bit; default: the model's own."
    )
    quantization: QuantizedBits | None = option(None, "Weights in 4 or 8 bit (bitsandbytes); training needs --lora-r.")
    lora_dropout: float | None = option(
        None, "Dropout of the adapters; default: 0.05, or 0 if the experts of the model share a tensor."
    )

    @property
    def gpus_per_process(self) -> int:
        """Return the number of GPUs of one process: all for text generation, one for a rank of a training."""
        return self.devices if self.task == "generate" else 1

    @property
    def optimizer(self) -> LoopOptimizer:
        """Return the optimizer, with the variant of AdamW that the loop uses by default."""
        if self.optim not in (None, "adamw"):
            return self.optim
        if self.optim is None and self.strategy.startswith("deepspeed"):
            return "deepspeed_cpu"
        return "adamw_fused" if self.loop == "trainer" else "adamw_foreach"

    @property
    def spec(self) -> "RowSpec":
        """Return the training as a row of two optimizer steps on texts of one length.

        Raises InputError if options contradict each other, or if the model cannot be read.
        """
        from experiments.prediction.custom_spec import build_row_spec

        return build_row_spec(self)
