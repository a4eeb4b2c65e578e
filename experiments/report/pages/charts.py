"""Draw the charts of a report."""

from collections.abc import Iterable, Sequence

from experiments.charts import Bar, Chart, Limit, Line, Mark, NoteTone, Panel, bar_chart, line_chart
from experiments.report.content import Report, RowReport
from experiments.report.predicted import PredictedRow
from experiments.report.telemetry import Telemetry
from experiments.report.words import format_gib
from experiments.results.memory_parts import BUFFERS, PARTS_AT_POINT, STEP_POINTS
from experiments.results.predictions import StepTime
from experiments.results.schema import Memory, Snapshot
from experiments.results.wording import choose_memory_unit

BETWEEN_POINTS = "peak memory that exists only between two points of the step"
"""The part of the peak that no snapshot shows. Snapshots are taken at four points of a step (see STEP_POINTS)."""
BUFFERS_OF_LIBRARIES = f"{BUFFERS.name} of libraries"
PANELS = (
    ("busy", "%", {"gpu_util_percent": "GPU", "host_cpu_percent": "processor"}),
    ("memory", "GiB", {"gpu_memory_gib": "GPU", "process_memory_gib": "process", "host_memory_gib": "host"}),
    ("GPU power", "W", {"gpu_power_w": ""}),
    ("GPU clock", "MHz", {"gpu_sm_clock_mhz": ""}),
    ("GPU temperature", "°C", {"gpu_temperature_c": ""}),
    ("processes on the GPU", "", {"gpu_processes": ""}),
)
"""Panels of the telemetry chart: title, unit, and the label of the line by the column of telemetry.csv."""
STEP_PARTS = {
    "matrix products": ("matrix products",),
    "attention": ("attention",),
    "optimizer": ("optimizer",),
    "kernels limited by memory bandwidth": ("element-wise", "reductions", "indexing", "copies", "quantization"),
    "transfers between host and GPU": ("host transfers",),
}
"""The parts of a step in the chart, and the families of operations in each part."""
WAITING = "waiting for the host or for other GPUs"
PANELS_BY_GPU = (("busy by GPU", "%", "util_percent"), ("memory by GPU", "GiB", "memory_gib"))
"""Panels with a line for each GPU: title, unit, and field. The columns in telemetry.csv are gpu0_<field> and so on."""
MAX_GPUS = 16


def report_charts(report: Report) -> dict[str, Chart]:
    """Return the charts with data, by name: predicted, step, memory, memory-<row>, telemetry-<row>."""
    charts: dict[str, Chart] = {}
    limit = _limit(report.usable_gib, report.run.card)
    if report.predicted:
        bars = [_predicted_bar(row) for row in report.predicted.rows]
        alt = "Predicted memory of each row at its peak, by kind; the same numbers are in the table below"
        charts["predicted"] = _memory_chart(bars, alt, _limit(report.predicted.usable_gib, report.run.card))
        if bars := [bar for row in report.predicted.rows if (bar := _step_bar(row))]:
            alt = "Predicted shares of the time of a step, by what the GPU does, for each row that fits"
            charts["step"] = bar_chart(bars, "% of the step", alt)
    if bars := [bar for row in report.rows if (bar := _peak_bar(row))]:
        alt = "Peak memory of each row, by kind; the same numbers are in the table of rows"
        charts["memory"] = _memory_chart(bars, alt, limit)
    for row in report.rows:
        if row.result and row.result.memory.snapshots:
            points = [_point_bar(shot) for shot in snapshots_to_show(row.result.memory)]
            alt = "Memory at the points of a step; the same numbers are in the table below"
            charts[f"memory-{row.row}"] = _memory_chart(points, alt, limit)
        if row.telemetry and row.telemetry.columns.keys() - {"t_s"}:
            charts[f"telemetry-{row.row}"] = _telemetry_chart(row.telemetry)
    return charts


def _memory_chart(bars: Sequence[Bar], alt: str, limit: Limit | None) -> Chart:
    """Return a chart of bars whose sizes are in GiB.

    limit: memory that a process can allocate, drawn as a line; None: no line. With a limit, the axis is in GiB. Without
    one, the axis is in the unit that suits the largest bar.
    """
    unit, per_gib = ("GiB", 1) if limit else choose_memory_unit(max(sum(bar.parts.values()) for bar in bars))
    return bar_chart([_scaled_bar(bar, per_gib) for bar in bars], unit, alt, limit)


def _scaled_bar(bar: Bar, factor: int) -> Bar:
    parts = {name: size * factor for name, size in bar.parts.items()}
    return bar._replace(parts=parts, marks=[mark._replace(value=mark.value * factor) for mark in bar.marks])


def highest_snapshot(memory: Memory) -> Snapshot | None:
    """Return the snapshot with the most allocated memory; None without snapshots."""
    return max(memory.snapshots, key=lambda shot: shot.allocated_gib, default=None)


def snapshots_to_show(memory: Memory) -> list[Snapshot]:
    """Return the snapshots of the first step and of the step with the peak: one for each of the step's four points.

    If a step has several micro-steps, the snapshot is of the micro-step with the most allocated memory.
    """
    highest = highest_snapshot(memory)
    if highest is None:
        return []
    steps = sorted({min(shot.step for shot in memory.snapshots), highest.step})
    shown = []
    for step in steps:
        for point in STEP_POINTS:
            shots = [shot for shot in memory.snapshots if (shot.step, shot.point) == (step, point)]
            shown += [max(shots, key=lambda shot: shot.allocated_gib)] if shots else []
    return shown


def _snapshot_parts(shot: Snapshot) -> dict[str, float]:
    return {part.name: max(0.0, getattr(shot, part.field)) for part in PARTS_AT_POINT}


def _peak_bar(row: RowReport) -> Bar | None:
    """Return the bar of a row's peak: the parts of the snapshot with the most memory, and memory that it lacks."""
    if row.result is None or (peak := row.result.memory.peak_gib) is None:
        return None
    memory = row.result.memory
    highest = highest_snapshot(memory)
    parts = _snapshot_parts(highest) if highest else {}
    parts[BETWEEN_POINTS] = max(0.0, peak - sum(parts.values()))
    note = row.fewer_ranks_note
    if row.result.outcome != "fits":
        note = row.measured
    elif highest and highest.optimizer_cpu_gib > highest.optimizer_gib:
        note = f"+ {format_gib(highest.optimizer_cpu_gib)} on the host"
    tone: NoteTone = "quiet" if row.result.outcome == "fits" else "bad"
    return Bar(row.row, parts, _reserved_marks(memory.reserved_gib), format_gib(peak), note, tone)


def _predicted_bar(row: PredictedRow) -> Bar:
    prediction = row.prediction
    parts = {part.name: getattr(prediction.at_peak, part.field) for part in PARTS_AT_POINT}
    parts[BUFFERS_OF_LIBRARIES] = prediction.at_peak.buffers_gib
    marks = _reserved_marks(prediction.limited_reserved_gib)
    if row.measured_peak_gib is not None:
        marks.append(Mark("measured peak", row.measured_peak_gib, "diamond"))
    notes = [] if prediction.predicted_outcome == "fits" else [row.words.partition(":")[0]]
    if row.optimizer_cpu_gib > prediction.at_peak.optimizer_gib:
        notes.append(f"+ {format_gib(row.optimizer_cpu_gib)} on the host")
    tones: dict[str, NoteTone] = {"fits": "quiet", "oom": "bad", "borderline": "warn"}
    return Bar(
        row.row, parts, marks, format_gib(prediction.peak_gib), " ".join(notes), tones[prediction.predicted_outcome]
    )


def _step_bar(row: PredictedRow) -> Bar | None:
    """Return the bar of a row's step; None if no time is predicted for the row, or if the row does not fit."""
    time = row.prediction.time
    if time is None or row.prediction.likely_outcome != "fits":
        return None
    return step_bar(row.row, time)


def step_bar(name: str, time: StepTime) -> Bar:
    """Return the bar of a step: the shares of the step's time in percent, by what the GPU does."""
    parts = {part: sum(time.device_s.get(one, 0.0) for one in families) for part, families in STEP_PARTS.items()}
    parts[WAITING] = max(0.0, time.step_s - sum(parts.values()))
    percent = {part: 100 * part_s / time.step_s for part, part_s in parts.items()}
    marks = [Mark("work of the host", 100 * time.host_s / time.step_s)]
    note = "" if time.limited_by.startswith("GPU") else f"limited by the {time.limited_by}"
    return Bar(name, percent, marks, time.words, note)


def _point_bar(shot: Snapshot) -> Bar:
    where = f"step {shot.step}, micro-step {shot.micro_step}"
    return Bar(
        shot.point, _snapshot_parts(shot), _reserved_marks(shot.reserved_gib), format_gib(shot.allocated_gib), where
    )


def _reserved_marks(size: float | None) -> list[Mark]:
    return [] if size is None else [Mark("reserved by the allocator", size)]


def _limit(usable_gib: float | None, card: str) -> Limit | None:
    return None if usable_gib is None else Limit(usable_gib, f"{card}: {format_gib(usable_gib)} usable")


def _telemetry_chart(telemetry: Telemetry) -> Chart:
    columns = telemetry.columns
    panels = [
        Panel(title, unit, [Line(name, columns[column]) for column, name in lines.items()])
        for title, unit, lines in _panels(columns)
    ]
    seconds = [time or 0.0 for time in columns["t_s"]]
    alt = "Load of the machine over time; telemetry.csv has the numbers"
    return line_chart(panels, seconds, "seconds since the start of the row", alt)


def _panels(columns: Iterable[str]) -> list[tuple[str, str, dict[str, str]]]:
    """Return title, unit and lines (label by column) of each panel with data. Each of several GPUs has its own line."""
    panels_by_gpu = [
        (title, unit, {f"gpu{number}_{field}": f"GPU {number}" for number in range(MAX_GPUS)})
        for title, unit, field in PANELS_BY_GPU
    ]
    available = set(columns) - ({"gpu_util_percent", "gpu_memory_gib"} if "gpu1_util_percent" in columns else set())
    shown = [
        (title, unit, {name: words for name, words in lines.items() if name in available})
        for title, unit, lines in (*panels_by_gpu, *PANELS)
    ]
    return [panel for panel in shown if panel[2]]
