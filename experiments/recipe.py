"""Experiments as data: suites of rows, what each row sets, what should come of it, and claims that compare rows."""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from experiments.card import card_named
from experiments.errors import InputError, unknown
from experiments.facts import RECIPES, Facts, checked, read_yaml

SPEC_VERSION: Literal[1] = 1
NOT_SUITES = ("cards", "models")

Precision = Literal["32-true", "bf16-true", "bf16-mixed"]
Optimizer = Literal["adamw", "sgd", "adam_8bit", "deepspeed_cpu"]
Strategy = Literal["auto", "ddp", "fsdp", "deepspeed_stage_2_offload", "deepspeed_stage_3_offload"]
Engine = Literal["lightning", "litgpt", "litgpt_trainer", "hf_trainer"]
Size = Literal["full", "tiny"]
Length = Literal["as-taught", "verdict", "peak"]
Weights = Literal["random", "pretrained"]
Input = Literal["as-taught", "with-image"]
Outcome = Literal["fits", "oom"]
Quantity = Literal[
    "params_gib",
    "grads_gib",
    "optimizer_gib",
    "optimizer_cpu_gib",
    "activations_gib",
    "allocated_after_forward_gib",
    "peak_gib",
    "reserved_gib",
    "samples_per_s",
    "step_s",
    "train_s",
    "communication_share",
    "gpu_idle_share",
    "final_loss",
]


class Model(Facts):
    """A model of models.yaml: where its weights are and the architecture that random weights are built from.

    Of family transformers the architecture is a whole configuration with its model_type, as a config.json has it; such
    a model may leave open what only models.yaml states.
    """

    family: Literal["blip2-opt", "blip2-t5", "llama", "gpt-neo", "transformers"]
    hub: str = Field(default="", description="empty: no published weights are known")
    parameters: NonNegativeInt = Field(default=0, description="counted, shared tensors once; 0: not known yet")
    litgpt: str | None = None
    architecture: dict[str, Any]
    source: str = ""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.family == "transformers":
            if "model_type" not in self.architecture:
                raise ValueError("architecture: the key 'model_type' is missing, which config.json has")
        elif not (self.hub and self.parameters and self.source):
            raise ValueError(f"a model of family {self.family} needs hub, parameters and source")
        return self


class Lora(Facts):
    """Low-rank adapters: rank, scale, dropout, and which linear layers carry them."""

    r: PositiveInt
    alpha: PositiveInt
    dropout: NonNegativeFloat
    targets: tuple[str, ...] | Literal["all-linear"]


class Quantization(Facts):
    """4-bit base weights as bitsandbytes keeps them."""

    kind: Literal["nf4"]
    compute_dtype: Literal["bfloat16"] = "bfloat16"
    double_quantization: bool = False


class Settings(Facts):
    """Everything a row sets. batch_size counts samples of one rank and one micro-step.

    Of batch_size, accumulate and global_batch_size any two fix the third:
    global_batch_size = batch_size x accumulate x ranks: devices x nodes, or 1 to sample from a model.
    """

    engine: Engine
    model: str
    task: Literal["train", "generate"] = "train"
    dataset: Literal["gourmetgram-captions", "alpaca2k", "imdb", "constant"] = Field(
        description="constant: every text has exactly max_length tokens"
    )
    batch_size: PositiveInt
    accumulate: PositiveInt
    global_batch_size: PositiveInt
    precision: Precision
    optimizer: Optimizer
    lr: PositiveFloat
    weight_decay: NonNegativeFloat | None = None
    betas: tuple[float, float] | None = None
    warmup_steps: NonNegativeInt = 0
    min_lr: PositiveFloat | None = None
    max_epochs: PositiveInt
    max_steps: int = Field(default=-1, ge=-1, description="optimizer steps; -1: as many as the epochs have")
    max_length: PositiveInt = Field(description="tokens of text a sample may have")
    train_samples: PositiveInt | None = Field(
        default=None, description="None: all that the data set and the split give"
    )
    validation: float = Field(default=0.0, ge=0.0, description="below 1 a share, else a number of samples")
    devices: PositiveInt = 1
    nodes: PositiveInt = 1
    strategy: Strategy = "auto"
    gradient_as_bucket_view: bool = Field(
        default=False, description="DDP keeps gradients in its buckets, not beside them"
    )
    launcher: Literal["none", "torchrun", "accelerate"] = "none"
    activation_checkpointing: bool = False
    lora: Lora | None = None
    quantization: Quantization | None = None
    workers: NonNegativeInt
    save_model: bool = False
    seed: int = 42
    time_limit_s: PositiveInt

    @model_validator(mode="before")
    @classmethod
    def _complete_batches(cls, data: dict[str, Any]) -> dict[str, Any]:
        if data.keys() - cls.model_fields:
            return data
        for key in ("devices", "nodes", "batch_size", "accumulate", "global_batch_size"):
            value = data.get(key)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{key} = {value!r}: a whole number above 0 is needed")
        world = 1 if data.get("task") == "generate" else data.get("devices", 1) * data.get("nodes", 1)
        batch, accumulate, total = (data.get(key) for key in ("batch_size", "accumulate", "global_batch_size"))
        if batch is None and total is None:
            raise ValueError("batch_size or global_batch_size is needed")
        if batch is not None and total is not None:
            accumulate = accumulate or _divided(total, batch * world, f"batch_size {batch} on {world} device(s)")
        elif total is not None:
            accumulate = accumulate or 1
            batch = _divided(total, accumulate * world, f"accumulate {accumulate} on {world} device(s)")
        elif batch is not None:
            accumulate = accumulate or 1
            total = batch * accumulate * world
        if batch and accumulate and total != batch * accumulate * world:
            raise ValueError(
                f"global_batch_size = {total}: is not batch_size {batch} x accumulate {accumulate} x {world} device(s)"
            )
        return {**data, "batch_size": batch, "accumulate": accumulate, "global_batch_size": total}

    @model_validator(mode="after")
    def _whole_optimizer_steps(self) -> Self:
        """An epoch must end with an optimizer step; a leftover would be stepped on with fewer micro-steps."""
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
        """Devices of the row, over all nodes."""
        return self.devices * self.nodes

    @property
    def ranks(self) -> int:
        """Processes of the row, over all nodes: one a device, but one in all to sample from a model."""
        return 1 if self.task == "generate" else self.world_size


def _divided(total: int, part: int, of_what: str) -> int:
    if total % part:
        raise ValueError(f"global_batch_size = {total}: cannot be divided by {of_what}; allowed: multiples of {part}")
    return total // part


class Figure(Facts):
    """A figure that the material states: ``quantity`` of the result within [low, high], widened by ``tolerance``.

    tolerance is a share of the bounds (0.05: five percent). result.QUANTITIES says what each quantity is.
    """

    quantity: Quantity
    low: float
    high: float
    tolerance: float = Field(default=0.0, ge=0)
    source: str

    @property
    def bounds(self) -> tuple[float, float]:
        return self.low * (1 - self.tolerance), self.high * (1 + self.tolerance)


class Expectation(Facts):
    """What should come of a row; nothing stated means that the row is reported and not judged."""

    outcome: Outcome | None = None
    figures: tuple[Figure, ...] = ()


class Row(Facts):
    """One experiment: its settings over the suite's common ones, per card where they differ, and its expectation."""

    id: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    title: str
    cards: tuple[str, ...] | None = Field(default=None, description="None: all cards of the suite")
    settings: dict[str, Any]
    per_card: dict[str, dict[str, Any]] = Field(default_factory=dict)
    expect: Expectation = Expectation()
    note: str | None = None


class Check(Facts):
    """One comparison of a claim: a quantity of ``row``, over the same of ``over_row`` when given, within [low, high].

    over_quantity compares with another quantity (of over_row, or of the same row). Instead of a quantity, ``outcome``
    states how the row must end.
    """

    row: str
    quantity: Quantity | None = None
    over_row: str | None = None
    over_quantity: Quantity | None = None
    low: float | None = None
    high: float | None = None
    outcome: Outcome | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.quantity is None) == (self.outcome is None):
            raise ValueError("a check states either quantity or outcome")
        if self.quantity is not None and self.low is None and self.high is None:
            raise ValueError(f"a check of {self.quantity} needs low, high or both")
        return self

    @property
    def relative(self) -> bool:
        """True when two measured values are compared, so that the model's size cancels out."""
        return self.over_row is not None or self.over_quantity is not None


class Claim(Facts):
    """A statement of the material, and the checks that must all hold for it.

    full_size: the statement is about the real model's size and says nothing of a miniature. all_ranks: it is about as
    many ranks as its rows state, and says nothing of rows that were scaled down to fewer.
    """

    id: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    says: str
    checks: tuple[Check, ...] = Field(min_length=1)
    full_size: bool = False
    all_ranks: bool = False


class Suite(Facts):
    """One file of recipes/: the rows of one lab or guide, for the cards it was written for."""

    suite: str
    version: PositiveInt
    title: str
    source: str
    cards: tuple[str, ...] = Field(min_length=1)
    common: dict[str, Any]
    rows: tuple[Row, ...] = Field(min_length=1)
    claims: tuple[Claim, ...] = ()

    def row(self, row_id: str) -> Row:
        """The row of that id; InputError names the ids there are."""
        for row in self.rows:
            if row.id == row_id:
                return row
        raise unknown("row", row_id, (row.id for row in self.rows), f"suite {self.suite}")

    def rows_for(self, card: str) -> tuple[Row, ...]:
        """The rows that the material runs on ``card``; InputError when the suite has none for it."""
        if card not in self.cards:
            raise unknown("card", card, self.cards, f"suite {self.suite}")
        return tuple(row for row in self.rows if card in (row.cards or self.cards))

    def settings(self, row: Row, card: str, gpus_per_node: int | None = None) -> Settings:
        """What ``row`` sets on ``card``: the suite's common settings, then the row's, then the card's.

        A row that wants more devices of a node than ``gpus_per_node`` is scaled down to so many.
        """
        merged = {**self.common, **row.settings, **row.per_card.get(card, {})}
        if gpus_per_node is not None:
            merged["devices"] = min(merged.get("devices", 1), gpus_per_node)
        where = f"{self.suite}.yaml: row {row.id!r} on {card}"
        settings = checked(Settings, merged, where)
        if settings.model not in models():
            raise unknown("model", settings.model, models(), where)
        return settings


class RowSpec(Facts):
    """One row as it is run: what the trainer reads, and all that its result depends on besides the code."""

    spec_version: Literal[1] = SPEC_VERSION
    suite: str
    recipe_version: int
    row: str
    card: str
    size: Size
    length: Length
    weights: Weights
    data: str = Field(description="'synthetic', 'hub', or the folder of a prepared data set")
    data_sha256: str | None = None
    input: Input
    settings: Settings
    model: Model | None = Field(default=None, description="the row's own, which models.yaml does not have")

    @model_validator(mode="after")
    def _model_is_known(self) -> Self:
        if self.model is None and self.settings.model not in models():
            raise unknown("model", self.settings.model, models(), f"row {self.row!r}")
        return self

    @property
    def facts(self) -> Model:
        """The model that the row is about."""
        return self.model or models()[self.settings.model]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything the row sets, hexadecimal: two runs of one fingerprint ran the same experiment."""
        facts = self.model_dump(mode="json", exclude=None if self.model else {"model"})
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@cache
def models() -> dict[str, Model]:
    """Every model by its name, as recipes/models.yaml states it."""
    path = RECIPES / "models.yaml"
    return {name: checked(Model, facts, f"{path.name}: model {name!r}") for name, facts in read_yaml(path).items()}


def suite_names() -> list[str]:
    """The names of all suites, sorted."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml") if path.stem not in NOT_SUITES)


@cache
def suite_named(name: str) -> Suite:
    """The checked suite of that name; InputError names the suites there are, or what is wrong in the file."""
    if name not in suite_names():
        raise unknown("suite", name, suite_names())
    return read_suite(RECIPES / f"{name}.yaml")


def read_suite(path: Path) -> Suite:
    """The suite in ``path``, each row checked on each of its cards; InputError says file, row, value and remedy."""
    suite = checked(Suite, _with_row_names(read_yaml(path), path), path.name)
    if suite.suite != path.stem:
        raise InputError(f"{path.name}: suite = {suite.suite!r}: must be the file's name, {path.stem!r}")
    _refuse_twins(path.name, "row", [row.id for row in suite.rows])
    _refuse_twins(path.name, "claim", [claim.id for claim in suite.claims])
    for card in suite.cards:
        card_named(card, path.name)
    for row in suite.rows:
        for card in (*(row.cards or ()), *row.per_card):
            if card not in suite.cards:
                raise unknown("card", card, suite.cards, f"{path.name}: row {row.id!r}")
        for card in row.cards or suite.cards:
            suite.settings(row, card)
    for claim in suite.claims:
        where = f"claim {claim.id!r}"
        for check in claim.checks:
            for row_id in filter(None, (check.row, check.over_row)):
                if row_id not in {row.id for row in suite.rows}:
                    raise unknown("row", row_id, (row.id for row in suite.rows), f"{path.name}: {where}")
    return suite


def _with_row_names(data: Any, path: Path) -> Any:
    """``data`` unchanged, after each row was checked by itself so that an error names the row and not its number."""
    if not isinstance(data, dict) or not isinstance(data.get("rows"), list):
        raise InputError(f"{path.name}: a suite needs the keys suite, version, title, source, cards, common and rows")
    for number, row in enumerate(data["rows"]):
        name = row.get("id", f"number {number + 1}") if isinstance(row, dict) else f"number {number + 1}"
        checked(Row, row, f"{path.name}: row {name!r}")
    claims = data.get("claims")
    for claim in claims if isinstance(claims, list) else ():
        checked(Claim, claim, f"{path.name}: claim {claim.get('id') if isinstance(claim, dict) else claim!r}")
    return data


def _refuse_twins(file: str, what: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{file}: {what} {name!r} stands twice; an id names one {what}")
