"""Functions for sizing.ipynb: predict custom trainings and draw where their memory goes."""

from collections.abc import Mapping
from types import MappingProxyType

from IPython.display import SVG, Markdown, display

from experiments.charts import Bar, Mark, bar_chart
from experiments.prediction.custom import CustomTraining
from experiments.prediction.service import trace_rows
from experiments.results.memory_parts import PARTS_AT_PEAK, PARTS_AT_POINT
from experiments.results.predictions import Prediction
from experiments.results.schema import Snapshot

NAMES = tuple(part.name for part in PARTS_AT_PEAK)

Bars = dict[str, dict[str, float]]


def show_peaks(trainings: Mapping[str, CustomTraining]) -> dict[str, Prediction]:
    """Predict each training, draw the parts of its peak, list peak and reserved memory; return predictions by label.

    Raises InputError for options that are invalid, and if nothing can be predicted on this machine.
    """
    labels, specs = list(trainings), [training.spec for training in trainings.values()]
    found = dict(zip(labels, trace_rows(specs, print), strict=True))
    parts = {label: _parts_at_peak(prediction) for label, prediction in found.items()}
    display(stacked_bars(parts, {label: prediction.reserved_gib for label, prediction in found.items()}))
    display(Markdown(peaks_table(found)))
    return found


def show_memory_within_a_step(training: CustomTraining) -> Prediction:
    """Predict one training, draw its memory at the four points of each step, and return the prediction."""
    (found,) = trace_rows([training.spec], print)
    display(stacked_bars({_point_label(shot): parts_at(shot) for shot in found.memory.snapshots}))
    return found


def stacked_bars(bars: Bars, reserved: Mapping[str, float] = MappingProxyType({})) -> SVG:
    """Return a chart of stacked bars, with the first bar on top and a mark at the reserved memory.

    bars: GiB by label of the bar and name of the part (NAMES). reserved: reserved GiB, by label of the bar. The chart
    is in MiB if no bar reaches one GiB.
    """
    small = all(sum(parts.values()) < 1 for parts in bars.values())
    scale, unit = (1024, "MiB") if small else (1, "GiB")
    drawn = [
        Bar(
            label,
            {name: scale * parts[name] for name in NAMES if name in parts},
            [Mark("reserved", scale * reserved[label])] if label in reserved else [],
        )
        for label, parts in bars.items()
    ]
    return SVG(bar_chart(drawn, unit, f"Parts of the memory in {unit}: {', '.join(bars)}").standalone_svg())


def parts_at(shot: Snapshot) -> dict[str, float]:
    """Return the parts of the memory at one point, GiB by the name of the part."""
    return {part.name: getattr(shot, part.field) for part in PARTS_AT_POINT}


def peaks_table(predictions: Mapping[str, Prediction]) -> str:
    """Return a Markdown table of each peak: its parts, its total, reserved memory, and the step where it occurs."""
    head = ["", *NAMES, "peak", "reserved", "peak in"]
    rows = [
        [
            label,
            *map(_format_gib, _parts_at_peak(one).values()),
            _format_gib(one.peak_gib),
            _format_gib(one.reserved_gib),
            one.peak_phase,
        ]
        for label, one in predictions.items()
    ]
    lines = [head, ["---", *["---:"] * (len(head) - 2), "---"], *rows]
    return "GiB\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _parts_at_peak(prediction: Prediction) -> dict[str, float]:
    return {part.name: getattr(prediction.at_peak, part.field) for part in PARTS_AT_PEAK}


def _point_label(shot: Snapshot) -> str:
    return f"step {shot.step + 1}, {shot.point}"


def _format_gib(size: float) -> str:
    return f"{size:.2f}"
