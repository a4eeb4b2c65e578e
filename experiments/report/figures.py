"""Figures for plotly.js. Colors are the page's CSS variables, so that figures follow its theme."""

from collections.abc import Iterable, Sequence
from html import escape
from itertools import cycle
from typing import Any, NamedTuple

from experiments.report.content import Report, RowReport
from experiments.report.predicted import PredictedRow
from experiments.report.telemetry import Telemetry
from experiments.report.words import gib
from experiments.results.memory_parts import AT_A_POINT, BUFFERS, POINTS
from experiments.results.schema import Memory, Snapshot

Figure = dict[str, Any]

BETWEEN = "peak between the points"
BUFFERS_OF_LIBRARIES = f"{BUFFERS.name} of libraries"
PANELS = (
    ("busy, %", {"gpu_util_percent": "GPU", "host_cpu_percent": "processor"}),
    ("memory, GiB", {"gpu_memory_gib": "GPU", "process_memory_gib": "process", "host_memory_gib": "host"}),
    ("GPU power, W", {"gpu_power_w": ""}),
    ("GPU clock, MHz", {"gpu_sm_clock_mhz": ""}),
    ("GPU temperature, °C", {"gpu_temperature_c": ""}),
    ("processes on the GPU", {"gpu_processes": ""}),
)
EACH_GPU = {"busy by GPU, %": "util_percent", "memory by GPU, GiB": "memory_gib"}
LINES = ("--c-line-1", "--c-line-2", "--c-line-3", "--c-line-4")
MOST_GPUS = 16
BAR_PX, PANEL_PX, GAP_PX = 46, 76, 34


class Bar(NamedTuple):
    """One stacked bar: label, parts in GiB, reserved memory, and a measured peak to compare with."""

    label: str
    parts: dict[str, float]
    reserved_gib: float | None
    measured_gib: float | None = None


def figures(report: Report) -> dict[str, Figure]:
    """Return the figures with data, by name: predicted, memory, memory-<row>, telemetry-<row>."""
    found: dict[str, Figure] = {}
    if report.predicted:
        bars = [_predicted_bar(row) for row in report.predicted.rows]
        found["predicted"] = _bars(bars, report.predicted.usable_gib, report.run.card)
    if bars := [bar for row in report.rows if (bar := _peak_bar(row))]:
        found["memory"] = _bars(bars, report.usable_gib, report.run.card)
    for row in report.rows:
        if row.result and row.result.memory.snapshots:
            steps = [_point_bar(shot) for shot in telling_snapshots(row.result.memory)]
            found[f"memory-{row.row}"] = _bars(steps, report.usable_gib, report.run.card)
        if row.telemetry:
            found[f"telemetry-{row.row}"] = _telemetry(row.telemetry)
    return found


def highest_snapshot(memory: Memory) -> Snapshot | None:
    """Return the snapshot with the most allocated memory."""
    return max(memory.snapshots, key=lambda shot: shot.allocated_gib, default=None)


def telling_snapshots(memory: Memory) -> list[Snapshot]:
    """Return the points of the first step and of the step with the peak, each at its highest micro-step."""
    highest = highest_snapshot(memory)
    if highest is None:
        return []
    steps = sorted({min(shot.step for shot in memory.snapshots), highest.step})
    found = []
    for step in steps:
        for point in POINTS:
            shots = [shot for shot in memory.snapshots if (shot.step, shot.point) == (step, point)]
            found += [max(shots, key=lambda shot: shot.allocated_gib)] if shots else []
    return found


def _parts(shot: Snapshot) -> dict[str, float]:
    return {part.name: max(0.0, getattr(shot, part.field)) for part in AT_A_POINT}


def _peak_bar(row: RowReport) -> Bar | None:
    """Return a row's peak: its highest point, and what was allocated in addition between two points."""
    if row.result is None or (peak := row.result.memory.peak_gib) is None:
        return None
    memory = row.result.memory
    highest = highest_snapshot(memory)
    parts = _parts(highest) if highest else {}
    parts[BETWEEN] = max(0.0, peak - sum(parts.values()))
    label = f"<b>{escape(row.row)}</b>  {gib(peak).removesuffix(' GiB')}"
    if row.scaled:
        label += f"  <span style='color:--c-quiet'>{row.scaled}</span>"
    if row.result.outcome != "fits":
        label += f"  <span style='color:--c-bad'>{escape(row.measured)}</span>"
    elif highest and highest.optimizer_cpu_gib > highest.optimizer_gib:
        label += f"  <span style='color:--c-quiet'>+ {gib(highest.optimizer_cpu_gib)} in host memory</span>"
    return Bar(label, parts, memory.reserved_gib)


def _predicted_bar(row: PredictedRow) -> Bar:
    prediction = row.prediction
    parts = {part.name: getattr(prediction.at_peak, part.field) for part in AT_A_POINT}
    parts[BUFFERS_OF_LIBRARIES] = prediction.at_peak.buffers_gib
    label = f"<b>{escape(row.row)}</b>  {gib(prediction.peak_gib).removesuffix(' GiB')}"
    if prediction.predicted_outcome != "fits":
        color = "--c-bad" if prediction.predicted_outcome == "oom" else "--c-warn"
        label += f"  <span style='color:{color}'>{escape(row.words.partition(':')[0])}</span>"
    if row.optimizer_cpu_gib > prediction.at_peak.optimizer_gib:
        label += f"  <span style='color:--c-quiet'>+ {gib(row.optimizer_cpu_gib)} in host memory</span>"
    return Bar(label, parts, prediction.limited_reserved_gib, row.measured_peak_gib)


def _point_bar(shot: Snapshot) -> Bar:
    allocated = gib(shot.allocated_gib).removesuffix(" GiB")
    label = f"step {shot.step}, micro {shot.micro_step}  <b>{shot.point}</b>  {allocated}"
    return Bar(label, _parts(shot), shot.reserved_gib)


def _bars(bars: Sequence[Bar], limit_gib: float | None, card: str) -> Figure:
    places = list(range(len(bars)))
    order = (*(part.name for part in AT_A_POINT), BUFFERS_OF_LIBRARIES, BETWEEN)
    names = [name for name in order if any(name in bar.parts for bar in bars)]
    data = [_part_trace(name, [bar.parts.get(name, 0.0) for bar in bars], places) for name in names]
    if any(bar.reserved_gib is not None for bar in bars):
        values = [bar.reserved_gib for bar in bars]
        data.append(_marks("reserved", "reserved by the allocator", values, places, "line-ns"))
    if any(bar.measured_gib is not None for bar in bars):
        values = [bar.measured_gib for bar in bars]
        data.append(_marks("measured", "peak as measured", values, places, "diamond-open"))
    highest = max(max(sum(bar.parts.values()), bar.reserved_gib or 0.0) for bar in bars)
    layout = _layout(len(bars) * BAR_PX, top=30 if limit_gib else 10)
    layout |= {
        "margin": {"l": 6, "r": 8, "t": 30 if limit_gib else 10, "b": 48},
        "barmode": "stack",
        "bargap": 0.62,
        "annotations": [_label(0, place, bar.label) for place, bar in zip(places, bars, strict=True)],
        "xaxis": _axis(range=[0, max(highest, limit_gib or 0.0, 1e-6) * 1.03], title={"text": "GiB", "standoff": 6}),
        "yaxis": {"visible": False, "fixedrange": True, "range": [len(bars) - 0.55, -0.75]},
    }
    if limit_gib:
        layout["shapes"], limit = _limit(limit_gib, card)
        layout["annotations"].append(limit)
    return {"data": data, "layout": layout}


def _part_trace(name: str, values: list[float], places: list[int]) -> Figure:
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "x": values,
        "y": places,
        "marker": {"color": f"--c-{name.split()[0]}", "line": {"width": 0}},
        "hovertemplate": "%{x:.4~g} GiB<extra>" + name + "</extra>",
    }


def _marks(name: str, words: str, values: list[float | None], places: list[int], symbol: str) -> Figure:
    across = symbol == "line-ns"
    line = {"width": 2.5 if across else 1.8, "color": "--c-text"}
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": values,
        "y": places,
        "marker": {"symbol": symbol, "size": 20 if across else 9, "color": "--c-text", "line": line},
        "hovertemplate": "%{x:.4~g} GiB<extra>" + words + "</extra>",
    }


def _limit(limit_gib: float, card: str) -> tuple[list[Figure], Figure]:
    across = {"x0": limit_gib, "x1": limit_gib, "xref": "x", "y0": 0, "y1": 1, "yref": "paper"}
    line = {"type": "line", **across, "line": {"color": "--c-bad", "width": 1.5, "dash": "dash"}}
    text = {
        "text": f"{escape(card)}: {gib(limit_gib)} usable",
        "x": limit_gib,
        "xref": "x",
        "xanchor": "right",
        "y": 1,
        "yref": "paper",
        "yanchor": "bottom",
        "showarrow": False,
        "font": {"color": "--c-bad"},
    }
    return [line], text


def _label(x: float, y: int, text: str) -> Figure:
    return {
        "text": text,
        "x": x,
        "xref": "paper",
        "xanchor": "left",
        "y": y,
        "yref": "y",
        "yanchor": "bottom",
        "yshift": 8,
        "showarrow": False,
        "font": {"size": 11},
    }


def _telemetry(telemetry: Telemetry) -> Figure:
    panels = _panels(telemetry.columns)
    height = len(panels) * (PANEL_PX + GAP_PX)
    layout = _layout(height, top=0)
    layout |= {"xaxis": _axis(title={"text": "seconds since the start of the row", "standoff": 6}), "annotations": []}
    data: list[Figure] = []
    for number, (title, series) in enumerate(panels, start=1):
        top = 1 - ((number - 1) * (PANEL_PX + GAP_PX) + GAP_PX) / height
        axis = "" if number == 1 else str(number)
        layout[f"yaxis{axis}"] = _axis(domain=[max(0.0, top - PANEL_PX / height), top], rangemode="tozero", nticks=4)
        layout["annotations"].append(_panel_title(title, series.values(), top))
        data += [
            _line(telemetry, name, words, f"y{axis}", color)
            for color, (name, words) in zip(cycle(LINES), series.items(), strict=False)
        ]
    layout["xaxis"]["anchor"] = "free"
    layout["xaxis"]["position"] = 0
    return {"data": data, "layout": layout}


def _panels(columns: Iterable[str]) -> list[tuple[str, dict[str, str]]]:
    """Return title and lines (column: name) of each panel with data; several GPUs have a line each."""
    each = {
        title: {f"gpu{number}_{field}": f"GPU {number}" for number in range(MOST_GPUS)}
        for title, field in EACH_GPU.items()
    }
    there = set(columns) - ({"gpu_util_percent", "gpu_memory_gib"} if "gpu1_util_percent" in columns else set())
    shown = [
        (title, {name: words for name, words in series.items() if name in there})
        for title, series in (*each.items(), *PANELS)
    ]
    return [(title, series) for title, series in shown if series]


def _panel_title(title: str, names: Iterable[str], top: float) -> Figure:
    keys = [
        f"<span style='color:{color}'>■ {name}</span>" for color, name in zip(cycle(LINES), names, strict=False) if name
    ]
    return {
        "text": "   ".join([f"<b>{title}</b>", *keys]),
        "x": 0,
        "xref": "paper",
        "xanchor": "left",
        "y": top,
        "yref": "paper",
        "yanchor": "bottom",
        "showarrow": False,
    }


def _line(telemetry: Telemetry, name: str, words: str, axis: str, color: str) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": words or name,
        "x": telemetry.columns["t_s"],
        "y": telemetry.columns[name],
        "yaxis": axis,
        "line": {"color": color, "width": 1.5},
        "hovertemplate": "%{x:.0f} s: %{y:.4~g}<extra>" + (words or "") + "</extra>",
    }


def _layout(height: int, top: int) -> Figure:
    return {
        "height": height + top + 48,
        "margin": {"l": 40, "r": 12, "t": top, "b": 48},
        "showlegend": False,
        "dragmode": False,
        "hovermode": "closest",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": "--c-text"},
        "hoverlabel": {"bgcolor": "--c-card", "bordercolor": "--c-rule", "font": {"color": "--c-text"}},
    }


def _axis(**own: Any) -> Figure:
    return {
        "gridcolor": "--c-rule",
        "zerolinecolor": "--c-rule",
        "linecolor": "--c-rule",
        "tickfont": {"color": "--c-quiet"},
        "fixedrange": True,
        "automargin": False,
        **own,
    }
