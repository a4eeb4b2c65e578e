"""Schema of a suite: rows with settings and expected results, and claims that compare rows."""

import re
from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import (
    AliasChoices,
    Field,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    field_validator,
    model_validator,
)

from experiments.errors import unknown_name_error
from experiments.suites.choices import Group
from experiments.suites.models import Model, models
from experiments.suites.settings import Settings
from experiments.suites.yaml_schema import StrictModel, validate

ExpectedOutcome = Literal["fits", "oom"]
FailurePhase = Literal["load", "forward", "backward", "optimizer step"]
SCALED_SETTINGS = ("model", "batch_size", "accumulate", "global_batch_size", "max_length", "workers", "time_limit_s")
"""Settings in which a row's twin for a smaller card may differ from the row."""
ID_PATTERN = r"^[a-z0-9]+(-[a-z0-9]+)*$"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
Quantity = Literal[
    "params_gib",
    "grads_gib",
    "optimizer_gib",
    "optimizer_cpu_gib",
    "activations_before_forward_gib",
    "activations_gib",
    "activations_after_backward_gib",
    "allocated_after_forward_gib",
    "largest_gpu_params_gib",
    "peak_gib",
    "gpu_peak_gib",
    "reserved_gib",
    "peak_share",
    "reserved_share",
    "parameters_e9",
    "trainable_parameters_e9",
    "oom_step",
    "samples_per_step",
    "micro_steps_per_step",
    "planned_micro_steps",
    "samples_per_s",
    "step_s",
    "train_s",
    "mfu",
    "communication_share",
    "gpu_idle_share",
    "gpu_processes",
    "gpu_util_peak_percent",
    "gpu_util_percent",
    "other_gpu_util_percent",
    "cpu_wait_share",
    "cpu_waits_per_step",
    "early_loss",
    "final_loss",
    "last_loss",
    "loss_fall",
]
LOSS_FALL: Quantity = "loss_fall"
"""The fall of the loss during a training. Checks of losses use it for tiny models, which then run all lab steps."""
EARLY_LOSS: Quantity = "early_loss"
"""The loss of the first steps. It is compared at any length of the training and for any size of the model."""


class ReferenceValue(StrictModel):
    """A number that the lab states: ``quantity`` must be within [low, high], widened by ``tolerance``."""

    quantity: Quantity = Field(description="a quantity of results/quantities.py")
    low: float = Field(description="smallest stated value")
    high: float = Field(description="largest stated value")
    tolerance: float = Field(default=0.0, ge=0, description="share by which both bounds are widened; 0.05: 5 %")
    source: str = Field(description="where the lab states the value")
    known_failure: str = Field(
        default="", description="cause, if the statement is known to fail; a failure then does not change the exit code"
    )

    def as_check(self, row: str) -> "Check":
        """Return the reference value as a check of ``row``, with its bounds widened by the tolerance."""
        low, high = self.low * (1 - self.tolerance), self.high * (1 + self.tolerance)
        return Check(row=row, quantity=self.quantity, low=low, high=high)


class Expectation(StrictModel):
    """The expected result of a row. A row without an expected result is reported, but not evaluated."""

    outcome: ExpectedOutcome | None = Field(
        default=None, description="expected outcome; oom: out of GPU memory; None: not stated"
    )
    reference_values: tuple[ReferenceValue, ...] = Field(
        default=(),
        description="numbers that the lab states",
        validation_alias=AliasChoices("reference_values", "figures"),
    )


class Row(StrictModel):
    """One experiment: its settings in addition to the common ones, its settings by card, and its expected result."""

    id: str = Field(pattern=ID_PATTERN, description="name in commands and folders of results")
    title: str = Field(description="short description of the row, shown in reports")
    cards: tuple[str, ...] | None = Field(default=None, description="cards of this row; None: all cards of the suite")
    settings: dict[str, Any] = Field(description="settings that differ from the suite's common ones")
    per_card: dict[str, dict[str, Any]] = Field(default_factory=dict, description="settings that differ on a card")
    expect: Expectation = Field(default=Expectation(), description="result that the lab states")
    variant_of: str | None = Field(
        default=None, description="id of the row from which this row differs; tables of changes compare the two"
    )
    note: str | None = Field(default=None, description="remark about the row, shown in reports")


class Scale(StrictModel):
    """Smaller twins of rows for cards with less memory than those of the lab.

    A twin has the expected outcome of its row. It differs from its row only in model, batch sizes, accumulation, text
    length, workers and time limit (SCALED_SETTINGS), so precision, optimizer and adapters are the same.
    """

    scale: str = Field(description="name of the scale: the memory of its cards, such as 12gb")
    cards: tuple[str, ...] = Field(min_length=1, description="cards of catalog/cards.yaml that the twins are for")
    rows: dict[str, dict[str, Any]] = Field(description="by row: the settings in which its twin differs from the row")

    @field_validator("scale")
    @classmethod
    def _is_size(cls, name: str) -> str:
        if not re.fullmatch(r"[1-9][0-9]*gb", name):
            raise ValueError("allowed: a whole number of GB, such as 12gb")
        return name

    @property
    def note(self) -> str:
        """Return the note on rows that run as twins of this scale, such as 'scaled to 12 GB'."""
        return f"scaled to {self.scale.removesuffix('gb')} GB"


class Bounds(StrictModel):
    """Bounds for tiny models, and the quantity if it differs from that of the check.

    None as a bound: unbounded. None as the quantity: that of the check.
    """

    quantity: Quantity | None = Field(
        default=None, description="quantity for tiny models; with loss_fall, the tiny models run all steps of the lab"
    )
    low: float | None = Field(default=None, description="lower bound")
    high: float | None = Field(default=None, description="upper bound")


class Check(StrictModel):
    """One comparison of a claim: compares the row's outcome to the expected ``outcome``, or a quantity to bounds.

    With ``over_row``, the bounds apply to the quantity of ``row`` divided by the same quantity of ``over_row``. With
    ``over_quantity``, the divisor is that quantity, of ``over_row``, or of ``row`` if there is no ``over_row``.
    """

    row: str = Field(description="id of the row")
    quantity: Quantity | None = Field(default=None, description="a quantity of results/quantities.py")
    over_row: str | None = Field(default=None, description="id of the row whose quantity is the divisor")
    over_quantity: Quantity | None = Field(
        default=None, description="the divisor, a quantity of over_row or of the same row; None: the same quantity"
    )
    low: float | None = Field(default=None, description="smallest value that passes")
    high: float | None = Field(default=None, description="largest value that passes")
    outside: bool = Field(default=False, description="the value must not lie within [low, high]")
    miniature: Bounds | None = Field(
        default=None, description="quantity and bounds for tiny models; default: those of the check"
    )
    outcome: ExpectedOutcome | None = Field(default=None, description="outcome that passes, in place of a quantity")
    phase: FailurePhase | None = Field(default=None, description="phase in which the memory must run out; None: any")

    @model_validator(mode="after")
    def _reject_inconsistent(self) -> Self:
        if (self.quantity is None) == (self.outcome is None):
            raise ValueError("a check states either quantity or outcome")
        if self.quantity is not None and self.low is None and self.high is None:
            raise ValueError(f"a check of {self.quantity} needs low, high or both")
        if self.phase and self.outcome != "oom":
            raise ValueError("phase is allowed with outcome: oom only")
        if self.outside and None in (self.low, self.high):
            raise ValueError("a check with outside needs low and high")
        return self

    def accepts(self, value: float) -> bool:
        """Return whether ``value`` is within the bounds, or outside of them if ``outside`` is true."""
        inside = (self.low is None or value >= self.low) and (self.high is None or value <= self.high)
        return inside != self.outside

    def for_tiny_models(self) -> "Check":
        """Return the check with the quantity and the bounds for tiny models."""
        if self.miniature is None:
            return self
        return self.model_copy(update=dict(self.miniature) | {"quantity": self.miniature.quantity or self.quantity})

    @property
    def is_relative(self) -> bool:
        """Return whether the check compares two measured values, so that the model's size cancels out."""
        return self.over_row is not None or self.over_quantity is not None


class Claim(StrictModel):
    """A statement of the lab that compares rows. A claim passes if all its checks pass."""

    id: str = Field(pattern=ID_PATTERN, description="name in verdicts")
    says: str = Field(description="the statement in a sentence")
    checks: tuple[Check, ...] = Field(min_length=1, description="comparisons that must all pass")
    full_size: bool = Field(default=False, description="depends on the full-size model: not evaluated on tiny models")
    all_ranks: bool = Field(
        default=False, description="depends on the number of ranks: not evaluated for rows that run on fewer GPUs"
    )
    known_failure: str = Field(
        default="", description="cause, if the statement is known to fail; a failure then does not change the exit code"
    )

    @property
    def verdict_id(self) -> str:
        """Return the id of the claim's verdict."""
        return f"claim/{self.id}"


class LeaseEstimate(StrictModel):
    """The lease that all rows of a lab need."""

    hours: PositiveFloat = Field(default=1.0, description="length of the lease")
    gpus: PositiveInt = Field(default=1, description="number of GPUs per node")


class Suite(StrictModel):
    """The content of one suite file: the rows of one lab or guide, for the cards it was written for."""

    suite: str = Field(pattern=NAME_PATTERN, description="the file's name without .yaml; name in commands")
    version: PositiveInt = Field(
        description="version; increase it with each change that makes earlier results incomparable"
    )
    title: str = Field(description="the lab's name in reports")
    source: str = Field(description="where the lab is published")
    group: Group = Field(
        default="single", description="single: one GPU is enough; multi: several are needed; extra: not one of the labs"
    )
    lease: LeaseEstimate = Field(default=LeaseEstimate(), description="the lease that all rows need")
    cards: tuple[str, ...] = Field(min_length=1, description="cards of catalog/cards.yaml that the lab was written for")
    models: dict[str, Model] = Field(
        default_factory=dict, description="models of this suite that are not in catalog/models.yaml, by name"
    )
    common: dict[str, Any] = Field(description="settings that all rows share")
    rows: tuple[Row, ...] = Field(min_length=1, description="the experiments, in the order in which they run")
    claims: tuple[Claim, ...] = Field(default=(), description="statements that compare rows")
    scales: tuple[Scale, ...] = Field(default=(), description="smaller twins of the rows, for smaller cards")
    _settings_cache: dict[str, Settings] = PrivateAttr(default_factory=dict)

    def row(self, row_id: str) -> Row:
        """Return the row of that id. Raises InputError, which lists the known ids, if there is none."""
        for row in self.rows:
            if row.id == row_id:
                return row
        raise unknown_name_error("row", row_id, (row.id for row in self.rows), f"suite {self.suite}")

    def rows_for(self, card: str) -> tuple[Row, ...]:
        """Return the rows that run on ``card``; some or all may run as smaller twins.

        Raises InputError if ``card`` is not a card of the suite.
        """
        if card not in self.all_cards:
            raise unknown_name_error("card", card, self.all_cards, f"suite {self.suite}")
        return tuple(row for row in self.rows if card in (row.cards or self.all_cards))

    @property
    def all_cards(self) -> tuple[str, ...]:
        """Return the cards that the lab was written for, then those with smaller twins of the rows."""
        return (*self.cards, *(card for scale in self.scales for card in scale.cards))

    def first_card(self, row_id: str) -> str:
        """Return the first card for which the lab has the row itself, not a smaller twin."""
        return (self.row(row_id).cards or self.cards)[0]

    def twin_note(self, row_id: str, card: str) -> str:
        """Return 'scaled to 12 GB' if ``card`` has a smaller twin of the row; '' if the row is as the lab states it."""
        found = (scale for scale in self.scales if card in scale.cards and row_id in scale.rows)
        return next((scale.note for scale in found), "")

    def note_on_scaled_rows(self, rows: Sequence[str], card: str) -> str:
        """Return how many of ``rows`` run on ``card`` as smaller twins; '' if none does.

        Such as 'scaled to 12 GB' for all rows, or '2 of 14 rows scaled to 12 GB'.
        """
        notes = [note for row in rows if (note := self.twin_note(row, card))]
        if not notes:
            return ""
        return notes[0] if len(notes) == len(rows) else f"{len(notes)} of {len(rows)} rows {notes[0]}"

    def settings(self, row: Row, card: str, gpus_per_node: int | None = None) -> Settings:
        """Return the settings of ``row`` on ``card``.

        The row's settings override the common ones. Those for the card, or of the twin for the card, override both.
        A row that needs more devices per node than ``gpus_per_node`` is scaled down to that many. Raises InputError
        if the settings are invalid.
        """
        merged = {**self.common, **row.settings, **row.per_card.get(card, {}), **self._twin_settings(row, card)}
        if gpus_per_node is not None:
            merged["devices"] = min(merged.get("devices", 1), gpus_per_node)
        where = f"{self.suite}.yaml: row {row.id!r} on {card}"
        key = f"{where}: {merged}"
        if key not in self._settings_cache:
            settings = validate(Settings, merged, where)
            if settings.model not in (known := models() | self.models):
                raise unknown_name_error("model", settings.model, known, where)
            self._settings_cache[key] = settings
        return self._settings_cache[key]

    def _twin_settings(self, row: Row, card: str) -> dict[str, Any]:
        """Return the settings in which the row's twin on ``card`` differs from the row; empty if it has no twin."""
        return next((scale.rows.get(row.id, {}) for scale in self.scales if card in scale.cards), {})

    def rows_with_losses_of_tiny_models(self) -> set[str]:
        """Return the ids of the rows whose losses are also compared at tiny size, after all steps of the lab."""
        checks = [one for claim in self.claims for one in claim.checks if one.for_tiny_models().quantity == LOSS_FALL]
        return {name for check in checks for name in (check.row, check.over_row) if name}

    def rows_with_variants(self) -> set[str]:
        """Return the ids of the rows that have variants among the other rows."""
        return {row.variant_of for row in self.rows if row.variant_of}

    def rows_with_utilization(self) -> set[str]:
        """Return the ids of the rows with a statement on the utilization of their GPUs."""
        return {check.row for claim in self.claims for check in claim.checks if check.quantity == "gpu_util_percent"}

    def model_in_suite(self, settings: Settings) -> Model | None:
        """Return the row's model if the suite defines it; None for a model of catalog/models.yaml."""
        return self.models.get(settings.model)


def suite_json_schema() -> dict[str, Any]:
    """Return the JSON schema of a suite's file for editors; it also describes the settings that rows may have."""
    schema, settings = Suite.model_json_schema(), Settings.model_json_schema()
    definitions = schema["$defs"] | settings.pop("$defs")
    definitions["Settings"] = settings | {"required": []}
    settings_schema = {"$ref": "#/$defs/Settings"}
    schema["properties"]["common"] |= settings_schema
    row = definitions["Row"]["properties"]
    row["settings"] |= settings_schema
    row["per_card"]["additionalProperties"] = settings_schema
    definitions["Scale"]["properties"]["rows"]["additionalProperties"] = settings_schema
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema | {"$defs": definitions}
