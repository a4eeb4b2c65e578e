"""Rows of the suites for benchmarks: random weights and synthetic data, with other settings if needed."""

from typing import Any

from experiments.suites.choices import Length, Size
from experiments.suites.row_spec import RowSpec
from experiments.suites.suite import suite_named


def row_spec(
    suite: str,
    row: str,
    card: str,
    size: Size,
    length: Length,
    gpus: int | None = None,
    data: str = "synthetic",
    **overrides: Any,
) -> RowSpec:
    """Return the row on ``card``, on at most ``gpus`` GPUs per node; ``overrides`` replace its settings."""
    found = suite_named(suite)
    return RowSpec(
        suite=suite,
        recipe_version=found.version,
        row=row,
        card=card,
        size=size,
        length=length,
        weights="random",
        data=data,
        input="as-taught",
        settings=found.settings(found.row(row), card, gpus).model_copy(update=overrides),
    )
