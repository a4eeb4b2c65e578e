"""Parts of bars: none is negative if measured values do not add up, and each has a color."""

from types import SimpleNamespace
from typing import cast

import pytest

from experiments.charts.chart import SVG_STYLE, css_class_of
from experiments.report.content import RowReport
from experiments.report.pages.charts import (
    BETWEEN_POINTS,
    STEP_PARTS,
    WAITING,
    _peak_bar,
    _snapshot_parts,
    _step_bar,
)
from experiments.report.predicted import PredictedRow
from experiments.results.memory_parts import PARTS_AT_PEAK
from experiments.results.schema import Snapshot
from tests.support.results.in_memory import result


def shot(**sizes: float) -> Snapshot:
    values = {name: 0.0 for name in Snapshot.model_fields if name.endswith("_gib")}
    return Snapshot.model_validate({"step": 0, "micro_step": 0, "point": "after forward", **values, **sizes})


def test_a_part_with_negative_size_is_drawn_with_size_zero() -> None:
    assert min(_snapshot_parts(shot(params_gib=2.0, activations_gib=-0.5)).values()) == 0.0


@pytest.mark.parametrize(("peak_gib", "between_gib"), [(4.0, 0.0), (5.0, 0.0), (6.5, 1.5)])
def test_the_memory_between_snapshots_is_the_peak_minus_the_highest_snapshot(
    peak_gib: float, between_gib: float
) -> None:
    measured = result("a", memory={"peak_gib": peak_gib}, shots=(shot(params_gib=5.0, allocated_gib=5.0),))
    bar = _peak_bar(RowReport.model_construct(row="a", result=measured, fewer_ranks_note="", measured="fits"))
    assert bar is not None
    assert bar.parts[BETWEEN_POINTS] == between_gib


@pytest.mark.parametrize(("step_s", "waiting_percent"), [(1.0, 0.0), (2.0, 25.0)])
def test_the_waiting_time_of_a_step_shorter_than_its_operations_is_zero(step_s: float, waiting_percent: float) -> None:
    family = next(iter(STEP_PARTS.values()))[0]
    time = SimpleNamespace(device_s={family: 1.5}, step_s=step_s, host_s=0.1, limited_by="GPU", words="1 s")
    row = SimpleNamespace(row="a", prediction=SimpleNamespace(time=time, likely_outcome="fits"))
    bar = _step_bar(cast(PredictedRow, row))
    assert bar is not None
    assert bar.parts[WAITING] == waiting_percent


@pytest.mark.parametrize("name", [*(part.name for part in PARTS_AT_PEAK), BETWEEN_POINTS, *STEP_PARTS, WAITING])
def test_each_part_of_a_bar_has_a_color(name: str) -> None:
    assert f".{css_class_of(name)} {{" in SVG_STYLE
