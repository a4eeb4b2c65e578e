"""The settings of a row: model, data, batches, precision, optimizer, devices and their strategy."""

from typing import Any, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from experiments.suites.choices import Optimizer, Precision, Strategy
from experiments.suites.yaml_schema import StrictModel
from provision.words import number_with_noun

Engine = Literal["lightning", "litgpt", "litgpt_trainer", "hf_trainer"]


class Lora(StrictModel):
    """Low-rank adapters (LoRA): rank, scale, dropout, and the linear layers that have adapters."""

    r: PositiveInt = Field(description="rank of the adapters")
    alpha: PositiveInt = Field(description="the adapters' output is scaled by alpha / r")
    dropout: NonNegativeFloat = Field(description="share of the adapters' inputs that is set to zero")
    targets: tuple[str, ...] | Literal["all-linear"] = Field(description="names of the layers that have adapters")


class Quantization(StrictModel):
    """Quantization of the base weights to 4 bits, by bitsandbytes."""

    kind: Literal["nf4"] = Field(description="data type of the stored weights")
    compute_dtype: Literal["bfloat16"] = Field(default="bfloat16", description="data type of the arithmetic")
    double_quantization: bool = Field(default=False, description="also quantize the scales of the quantization")


_ONE_GPU: dict[str, tuple[object, ...]] = {"task": ("train",), "world_size": (1,), "strategy": ("auto",)}
_NEEDED_SETTINGS: dict[tuple[str, object], dict[str, tuple[object, ...]]] = {
    ("optimizer_in_backward", True): {
        **_ONE_GPU,
        "accumulate": (1,),  # each backward pass updates the parameters
        "optimizer": ("adamw", "adamw_cpu", "sgd", "adam_8bit"),
        "engine": ("lightning", "litgpt", "litgpt_trainer"),
        "quantization": (None,),
    },
    ("fused_optimizer", True): {"task": ("train",), "optimizer": ("adamw", "sgd"), "quantization": (None,)},
    ("packing", True): {
        **_ONE_GPU,
        "engine": ("litgpt", "litgpt_trainer"),
        "dataset": ("alpaca2k", "imdb", "constant"),
    },
    ("compile", True): {
        **_ONE_GPU,
        "quantization": (None,),
        "activation_checkpointing": (False,),
        "activation_offload": (False,),
    },
    ("optimizer", "sgd"): {"betas": (None,)},
    ("optimizer", "adamw_cpu"): {**_ONE_GPU, "quantization": (None,)},
    ("activation_offload", True): _ONE_GPU,
    ("chunked_loss", True): _ONE_GPU,
    ("activation_checkpointing", "selective"): {**_ONE_GPU, "engine": ("lightning", "hf_trainer")},
}
"""Values of settings that restrict other settings: maps (setting, value) to the allowed values of the others."""


class Settings(StrictModel):
    """All settings of a row.

    Any two of batch_size, accumulate and global_batch_size determine the third:
    global_batch_size = batch_size x accumulate x ranks. The number of ranks is devices x nodes, or 1 for text
    generation (task: generate).
    """

    engine: Engine = Field(description="library whose training loop runs the row")
    model: str = Field(description="a model of catalog/models.yaml")
    task: Literal["train", "generate"] = Field(default="train", description="generate: sample text from the model")
    accelerator: Literal["gpu", "cpu"] = Field(
        default="gpu", description="device that runs the row; cpu: no GPU, the memory is that of the host"
    )
    dataset: Literal["gourmetgram-captions", "alpaca2k", "imdb", "constant"] = Field(
        description="constant: every text has exactly max_length tokens"
    )
    batch_size: PositiveInt = Field(
        description="samples of one rank in one micro-step, which is one forward and backward pass"
    )
    accumulate: PositiveInt = Field(description="micro-steps of one optimizer step")
    global_batch_size: PositiveInt = Field(description="global batch size: samples per optimizer step, over all ranks")
    precision: Precision = Field(description="data types of weights and arithmetic, as Lightning names them")
    optimizer: Optimizer = Field(
        description="optimizer; adamw_cpu, deepspeed_cpu: AdamW on the CPU, with its state in host memory"
    )
    lr: PositiveFloat = Field(description="learning rate")
    weight_decay: NonNegativeFloat | None = Field(
        default=None, description="weight decay; None: the optimizer's default"
    )
    betas: tuple[float, float] | None = Field(default=None, description="Adam's betas; None: the optimizer's default")
    warmup_steps: NonNegativeInt = Field(default=0, description="warm-up: optimizer steps until the full learning rate")
    min_lr: PositiveFloat | None = Field(
        default=None, description="lower limit of the learning rate, as the lab states it; no training loop uses it"
    )
    max_epochs: PositiveInt = Field(description="passes over the data set")
    max_steps: int = Field(default=-1, ge=-1, description="number of optimizer steps; -1: the steps of max_epochs")
    max_length: PositiveInt = Field(description="maximum number of text tokens per sample")
    prompt_length: PositiveInt = Field(default=8, description="tokens of the prompt that a generated text begins with")
    train_samples: PositiveInt | None = Field(
        default=None, description="training samples per epoch; None: all samples of the training split"
    )
    validation: float = Field(
        default=0.0, ge=0.0, description="samples left out of training: a share of the data set (below 1), or a number"
    )
    devices: PositiveInt = Field(default=1, description="GPUs of one node")
    nodes: PositiveInt = Field(default=1, description="number of nodes that run the row's ranks")
    strategy: Strategy = Field(default="auto", description="how ranks share the model, as Lightning names it")
    gradient_as_bucket_view: bool = Field(
        default=False, description="DDP stores gradients only in its buckets, and keeps no second copy"
    )
    launcher: Literal["none", "torchrun", "accelerate"] = Field(
        default="none", description="command that starts the ranks; none: the engine starts them"
    )
    activation_checkpointing: bool | Literal["selective"] = Field(
        default=False,
        description="recompute a block's activations in the backward pass; selective: only some",
    )
    activation_offload: bool = Field(
        default=False, description="keep activations in host memory between the forward and the backward pass"
    )
    chunked_loss: bool = Field(
        default=False,
        description="compute output layer and loss for a few tokens at a time; recompute in the backward pass",
    )
    optimizer_in_backward: bool = Field(
        default=False, description="update each parameter in the backward pass as soon as its gradient is complete"
    )
    fused_optimizer: bool = Field(default=False, description="update many parameters with one GPU kernel")
    packing: bool = Field(
        default=False, description="concatenate a batch's texts without padding; each text attends only to itself"
    )
    compile: bool = Field(default=False, description="compile the model's blocks with torch.compile")
    lora: Lora | None = Field(default=None, description="train low-rank adapters in place of the model's weights")
    quantization: Quantization | None = Field(default=None, description="store the model's weights in 4 bits")
    workers: NonNegativeInt = Field(
        description="data loader processes per rank; 0: the training process loads the data"
    )
    save_model: bool = Field(default=False, description="write a checkpoint at the end of training")
    seed: int = Field(default=42, description="random seed of weights, data order and dropout")
    time_limit_s: PositiveInt = Field(description="seconds after which the row is stopped")

    @model_validator(mode="before")
    @classmethod
    def _complete_batches(cls, data: dict[str, Any]) -> dict[str, Any]:
        if data.keys() - cls.model_fields:
            return data
        for key in ("devices", "nodes", "batch_size", "accumulate", "global_batch_size"):
            value = data.get(key)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{key} = {value!r}: allowed: a whole number above 0")
        world = 1 if data.get("task") == "generate" else data.get("devices", 1) * data.get("nodes", 1)
        devices = number_with_noun(world, "device")
        batch, accumulate, total = (data.get(key) for key in ("batch_size", "accumulate", "global_batch_size"))
        if batch is None and total is None:
            raise ValueError("the row needs batch_size or global_batch_size")
        if batch is not None and total is not None:
            accumulate = accumulate or _exact_quotient(total, batch * world, f"batch_size {batch} on {devices}")
        elif total is not None:
            accumulate = accumulate or 1
            batch = _exact_quotient(total, accumulate * world, f"accumulate {accumulate} on {devices}")
        elif batch is not None:
            accumulate = accumulate or 1
            total = batch * accumulate * world
        if batch and accumulate and total != batch * accumulate * world:
            raise ValueError(
                f"global_batch_size = {total}: must be batch_size {batch} x accumulate {accumulate} x {devices}"
            )
        return {**data, "batch_size": batch, "accumulate": accumulate, "global_batch_size": total}

    @model_validator(mode="after")
    def _check_accelerator(self) -> Self:
        if self.accelerator == "cpu" and (self.task, self.world_size) != ("generate", 1):
            raise ValueError("accelerator = 'cpu': needs task: generate and 1 device; allowed for other rows: gpu")
        return self

    @model_validator(mode="after")
    def _check_needed_settings(self) -> Self:
        """Check the restrictions of _NEEDED_SETTINGS."""
        for (name, value), needed in _NEEDED_SETTINGS.items():
            for other, allowed in needed.items() if getattr(self, name) == value else ():
                if (found := getattr(self, other)) not in allowed:
                    values = ", ".join(map(str, allowed))
                    raise ValueError(f"{name} = {value}: needs {other} = {values}, but it is {found}")
        return self

    @model_validator(mode="after")
    def _check_steps_of_an_epoch(self) -> Self:
        """Check that an epoch ends with an optimizer step. Otherwise the last step would have fewer micro-steps."""
        batches = (self.train_samples or 0) // (self.batch_size * self.ranks)
        if batches % self.accumulate:
            allowed = [count for count in range(1, batches + 1) if batches % count == 0]
            raise ValueError(
                f"accumulate = {self.accumulate}: does not divide the {batches} batches of an epoch"
                f" ({self.train_samples} samples in batches of {self.batch_size});"
                f" allowed: {', '.join(map(str, allowed))}"
            )
        return self

    @property
    def world_size(self) -> int:
        """Return the number of devices over all nodes."""
        return self.devices * self.nodes

    @property
    def gpus(self) -> int:
        """Return the number of GPUs over all nodes: one per device, or none for a row on the CPU."""
        return 0 if self.accelerator == "cpu" else self.world_size

    @property
    def gpus_per_rank(self) -> int:
        """Return the number of GPUs of one process: 1 for training; all GPUs, or none, for sampling from a model."""
        return self.gpus // self.ranks

    @property
    def ranks(self) -> int:
        """Return the number of processes over all nodes: one per device, or one in total for sampling from a model."""
        return 1 if self.task == "generate" else self.world_size

    @property
    def uses_host_memory(self) -> bool:
        """Return whether the row keeps a part of its training state or activations in host memory."""
        return self.offloads_by_deepspeed or self.activation_offload or self.optimizer == "adamw_cpu"

    @property
    def uses_bitsandbytes(self) -> bool:
        """Return whether bitsandbytes stores the weights in 4 bits, or the optimizer's state in 8 bits."""
        return self.quantization is not None or self.optimizer == "adam_8bit"

    @property
    def offloads_by_deepspeed(self) -> bool:
        """Return whether DeepSpeed keeps the optimizer's state in host memory."""
        return self.optimizer == "deepspeed_cpu" or "offload" in self.strategy

    def nodes_to_use(self, max_nodes: int) -> int:
        """Return the number of nodes to run the row's ranks on: ``nodes`` if ``max_nodes`` allows it, else 1."""
        return self.nodes if self.ranks > 1 and self.nodes <= max_nodes else 1


def _exact_quotient(global_batch_size: int, divisor: int, divisor_name: str) -> int:
    if global_batch_size % divisor:
        raise ValueError(
            f"global_batch_size = {global_batch_size}: cannot be divided by {divisor_name}; "
            f"allowed: multiples of {divisor}"
        )
    return global_batch_size // divisor
