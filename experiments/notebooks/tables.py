"""Markdown tables of the settings, memory and speed of rows and ranks. Pure functions."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from experiments.results.memory_parts import BUFFERS, OPTIMIZER_CPU, PART_COLUMNS, STEP_POINTS
from experiments.results.quantities import QUANTITIES, value_of
from experiments.results.schema import Measured, Result, Snapshot, Speed
from experiments.results.verdicts import Verdict
from experiments.results.wording import OUTCOME_NAMES, format_number
from experiments.suites.row_spec import DERIVED_SETTING
from experiments.suites.settings import Lora, Quantization, Settings
from experiments.suites.suite import Quantity, Row, Suite

Cells = Mapping[str, str]

HOST_COLUMN = OPTIMIZER_CPU.name
PART_LABELS = {part.field: part.name for part in PART_COLUMNS if part != BUFFERS}
TOTAL_LABELS = {"peak_gib": "peak", "reserved_gib": "reserved"}
POINT_TABLE_LABELS = {**PART_LABELS, "allocated_gib": "allocated", **TOTAL_LABELS}
ROW_TABLE_LABELS = cast(
    dict[Quantity, str], {**PART_LABELS, "allocated_after_forward_gib": "allocated after forward", **TOTAL_LABELS}
)
HIDDEN_SETTINGS = ("time_limit_s", "seed", "workers")


class MemoryUnit(NamedTuple):
    """A unit of memory, and the number of units in one GiB."""

    name: str
    per_gib: int


GIB, MIB = MemoryUnit("GiB", 1), MemoryUnit("MiB", 1024)
MIB_TABLES_BELOW_GIB = 0.5
"""A table is in MiB if all of its sizes are below this."""
SHOWN_LOSSES = 12


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table whose first column is text and whose other columns are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def table_with_labels(corner: str, rows: Mapping[str, Cells]) -> str:
    """Return a table of ``rows`` by label, without empty columns. corner: heading of the column of labels."""
    names = [name for cells in rows.values() for name, cell in cells.items() if cell]
    header = list(dict.fromkeys(name for cells in rows.values() for name in cells if name in names))
    return table([corner, *header], [[name, *(cells.get(one, "") for one in header)] for name, cells in rows.items()])


def memory_at_points(snapshots: Iterable[Snapshot]) -> str:
    """Return a table of the memory at the four points of a step, from the last step that has each."""
    last = last_at_points(snapshots)
    sizes = {point: {field: getattr(shot, field) for field in POINT_TABLE_LABELS} for point, shot in last.items()}
    unit = _choose_unit(sizes.values())
    return table_with_labels(
        unit.name,
        {point: _size_cells(figures_at_point, POINT_TABLE_LABELS, unit) for point, figures_at_point in sizes.items()},
    )


def last_at_points(snapshots: Iterable[Snapshot]) -> dict[str, Snapshot]:
    """Return the last snapshot of each point that was reached, in the order of a step."""
    last = {shot.point: shot for shot in snapshots}
    return {point: last[point] for point in STEP_POINTS if point in last}


def memory(results: Mapping[str, Result]) -> str:
    """Return a table with the maximum of each part of memory by row, over all ranks of the row."""
    sizes = {
        name: {quantity: value_of(quantity, result) for quantity in ROW_TABLE_LABELS}
        for name, result in results.items()
    }
    unit = _choose_unit(sizes.values())
    outcomes = {name: {"outcome": OUTCOME_NAMES[result.outcome]} for name, result in results.items()}
    return table_with_labels(
        unit.name,
        {name: outcomes[name] | _size_cells(row_sizes, ROW_TABLE_LABELS, unit) for name, row_sizes in sizes.items()},
    )


def ranks(measured: Sequence[Measured]) -> str:
    """Return a table of ranks: the maximum of each part of memory, the longest padded text, and the time of a step."""
    sizes = {one.rank: {quantity: QUANTITIES[quantity](one) for quantity in ROW_TABLE_LABELS} for one in measured}
    unit = _choose_unit(sizes.values())
    rows = {
        f"rank {one.rank}": {
            "outcome": OUTCOME_NAMES[one.outcome],
            **_size_cells(sizes[one.rank], ROW_TABLE_LABELS, unit),
            "tokens of the longest text": str(one.max_tokens or ""),
            "s per step": format_number(one.speed.step_s) if one.speed else "",
        }
        for one in measured
    }
    return table_with_labels(unit.name, rows)


def speed(measured: Speed) -> str:
    """Return a table of a row's times, rates and idle shares."""
    figures = {
        "samples/s": format_number(measured.samples_per_s),
        "s per step": format_number(measured.step_s),
        "spread": f"{measured.spread:.1%}",
        "TFLOP/s": format_number(measured.tflops_per_s) if measured.tflops_per_s else "",
        "share of the peak rate": _format_share(measured.peak_share),
        **_wait_shares(measured),
        "s in total": format_number(measured.train_s),
    }
    known_figures = {name: figure for name, figure in figures.items() if figure}
    return table(list(known_figures), [list(known_figures.values())])


def losses(measured: Sequence[float]) -> str:
    """Return a table of the losses of up to SHOWN_LOSSES evenly spaced micro-steps; empty without losses."""
    last = len(measured) - 1
    shown = sorted({round(last * number / (SHOWN_LOSSES - 1)) for number in range(SHOWN_LOSSES)}) if measured else []
    if not shown:
        return ""
    return table(
        ["micro-step", *(str(step) for step in shown)], [["loss", *(format_number(measured[step]) for step in shown)]]
    )


def scaling(results: Mapping[str, Result]) -> str:
    """Return a table of the speeds of rows, relative to the first row with a speed; empty if there is none.

    Efficiency is the relative speed divided by the relative number of ranks.
    """
    timed = {name: result for name, result in results.items() if result.speed and result.outcome == "fits"}
    if not timed:
        return ""
    first, base = next(iter(timed.items()))
    return table_with_labels("", {name: _scaling_cells(result, base, first) for name, result in timed.items()})


def settings(rows: Mapping[str, Settings]) -> str:
    """Return a table of the settings that differ between rows; empty if there are none."""
    texts = {
        name: {key: _format_setting(value) for key, value in one if key not in HIDDEN_SETTINGS}
        for name, one in rows.items()
    }
    differing = [key for key in next(iter(texts.values())) if len({cells[key] for cells in texts.values()}) > 1]
    if not differing:
        return ""
    return table_with_labels("", {name: {key: cells[key] for key in differing} for name, cells in texts.items()})


def changes_table(suite: Suite, results: Mapping[str, Result]) -> str:
    """Return a table of rows and their variants; '' if no variant has a result together with its original row.

    results: by row. Columns: the settings that the variant changes, outcome, peak memory, speed, and the row's note,
    which states the cost of the change.
    """
    cells, bases = {}, suite.rows_with_variants()
    for row in suite.rows:
        base = row.variant_of or row.id
        if {row.id, base} <= results.keys() and base in bases:
            cells[row.title] = _change_cells(row, results[row.id], results[base])
    return table_with_labels("GiB", cells) if cells else ""


def verdicts(found: Iterable[Verdict]) -> str:
    """Return verdicts as a list: status, grade, statement, and the value or the reason."""
    return "\n".join(
        f"- **{one.status}**{f', {one.grade}' if one.grade else ''}: {one.says}"
        f" ({one.value if one.status == 'pass' else one.reason})"
        for one in found
    )


def _change_cells(row: Row, result: Result, base: Result) -> dict[str, str]:
    fits, own, other = result.outcome == "fits", dict(result.spec.settings), dict(base.spec.settings)
    changed = {
        key: _format_setting(value) for key, value in own.items() if value != other[key] and key != DERIVED_SETTING
    }
    return {
        "change": ", ".join(f"{key} {text}" for key, text in changed.items()),
        "outcome": OUTCOME_NAMES[result.outcome],
        "peak": _format_size(value_of("peak_gib", result), GIB) if fits else "",
        "samples/s": format_number(result.speed.samples_per_s) if fits and result.speed else "",
        "cost": row.note or "",
    }


def _scaling_cells(result: Result, base: Result, base_name: str) -> dict[str, str]:
    assert result.speed is not None
    assert base.speed is not None
    row_settings = result.spec.settings
    speed_ratio = result.speed.samples_per_s / base.speed.samples_per_s
    rank_ratio = row_settings.ranks / base.spec.settings.ranks
    return {
        "ranks": f"{row_settings.nodes} x {row_settings.devices}"
        if row_settings.nodes > 1
        else str(row_settings.ranks),
        "samples per step": str(row_settings.global_batch_size),
        "s per step": format_number(result.speed.step_s),
        "samples/s": format_number(result.speed.samples_per_s),
        f"times the speed of {base_name}": format_number(speed_ratio),
        "efficiency": _format_share(speed_ratio / rank_ratio) if rank_ratio != 1 else "",
        **_wait_shares(result.speed),
    }


def _wait_shares(measured: Speed) -> dict[str, str]:
    return {
        "communicating": _format_share(measured.communication_share),
        "only communicating": _format_share(measured.exposed_communication_share),
        "GPU idle": _format_share(measured.gpu_idle_share),
    }


def _size_cells(sizes: Mapping[Any, float | None], names: Mapping[Any, str], unit: MemoryUnit) -> dict[str, str]:
    """Return cells by column; the column of host memory is empty without offload."""
    cells = {name: _format_size(sizes[key], unit) for key, name in names.items()}
    return {name: "" if name == HOST_COLUMN and cell == "0" else cell for name, cell in cells.items()}


def _choose_unit(rows: Iterable[Mapping[Any, float | None]]) -> MemoryUnit:
    """Return MiB if all sizes are below half a GiB, as with tiny models; otherwise GiB."""
    largest_gib = max((gib or 0.0 for sizes in rows for gib in sizes.values()), default=0.0)
    return GIB if largest_gib >= MIB_TABLES_BELOW_GIB else MIB


def _format_size(gib: float | None, unit: MemoryUnit) -> str:
    """Format a size: two decimals, or three significant digits below 1; empty if it is unknown."""
    if gib is None:
        return ""
    size = round(gib * unit.per_gib, 3)
    return f"{size:.2f}" if size >= 1 else f"{size:.3g}"


def _format_share(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _format_setting(value: Any) -> str:
    if isinstance(value, Lora):
        return f"rank {value.r}"
    if isinstance(value, Quantization):
        return value.kind
    return "" if value is None else str(value)
