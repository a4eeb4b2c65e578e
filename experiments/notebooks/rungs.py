"""Chart and table of a ladder of rows: each row keeps the changes of the row before and adds one. Pure functions."""

from collections.abc import Mapping

from IPython.display import SVG

from experiments.charts.bars import Bar, bar_chart
from experiments.notebooks import tables
from experiments.results.quantities import value_of
from experiments.results.schema import Result, Speed
from experiments.results.wording import format_number, format_size


def speed_bars(results: Mapping[str, Result]) -> SVG | None:
    """Return a bar chart of the samples per second of rows by title; None without times on a GPU."""
    speeds = _speeds(results)
    if not speeds or any(results[title].device.kind != "cuda" for title in speeds):
        return None
    first = next(iter(speeds.values()))
    bars = [
        Bar(
            title,
            {"samples per second": speed.samples_per_s},
            value=f"{format_number(speed.samples_per_s)} samples/s",
            note=_bar_note(speed, first, results[title]),
        )
        for title, speed in speeds.items()
    ]
    return SVG(bar_chart(bars, "samples/s", f"Samples per second: {', '.join(speeds)}").standalone_svg())


def rungs_table(results: Mapping[str, Result]) -> str:
    """Return a Markdown table of rows by title: speed, share of the GPU's peak rate, memory, first losses.

    Without rows, return ''.
    """
    if not results:
        return ""
    speeds, before, rows = _speeds(results), None, {}
    first = next(iter(speeds.values()), None)
    for title, result in results.items():
        speed, loss = speeds.get(title), value_of("early_loss", result)
        rows[title] = {
            "samples/s": format_number(speed.samples_per_s) if speed else "",
            "times the speed of the row before": _speed_ratio(speed, before),
            "times the speed as taught": _speed_ratio(speed, first),
            "share of the peak rate": f"{speed.peak_share:.1%}" if speed and speed.peak_share is not None else "",
            "peak memory": _format_peak(result),
            "first losses": "" if loss is None else f"{loss:.3f}",
        }
        before = speed
    return tables.table_with_labels("", rows)


def _speeds(results: Mapping[str, Result]) -> dict[str, Speed]:
    return {title: one.speed for title, one in results.items() if one.speed and one.outcome == "fits"}


def _bar_note(speed: Speed, first: Speed, result: Result) -> str:
    times = (
        ""
        if speed is first
        else f"{format_number(speed.samples_per_s / first.samples_per_s)} times the speed as taught, "
    )
    share = "" if speed.peak_share is None else f"MFU {speed.peak_share:.0%}, "
    return f"{times}{share}{_format_peak(result)}"


def _speed_ratio(speed: Speed | None, base: Speed | None) -> str:
    return format_number(speed.samples_per_s / base.samples_per_s) if speed and base and speed is not base else ""


def _format_peak(result: Result) -> str:
    return "" if result.memory.peak_gib is None else format_size(result.memory.peak_gib)
