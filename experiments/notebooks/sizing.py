"""Functions for sizing.ipynb: predict custom trainings and draw where their memory goes."""

from collections.abc import Mapping

import plotly.graph_objects as go
from IPython.display import Markdown, display

from experiments.prediction.custom import CustomTraining
from experiments.prediction.service import traced
from experiments.results.memory_parts import AT_A_POINT, AT_PEAK
from experiments.results.predictions import Prediction
from experiments.results.schema import Snapshot

COLORS = dict(
    zip((part.name for part in AT_PEAK), ("#3f6fb5", "#2a9d8f", "#8d6cab", "#e0a030", "#8b8f98"), strict=True)
)
RESERVED = {"symbol": "line-ns-open", "size": 22, "color": "#22252a"}
BAR_PX, FRAME_PX = 44, 120

Bars = dict[str, dict[str, float]]


def peaks(questions: Mapping[str, CustomTraining]) -> dict[str, Prediction]:
    """Predict each training, draw the parts of its peak, list peak and reserved memory; return predictions by label.

    Raises InputError for options that are invalid, and if nothing can be predicted on this machine.
    """
    labels, specs = list(questions), [question.spec for question in questions.values()]
    found = dict(zip(labels, traced(specs, print), strict=True))
    parts = {label: _parts(prediction) for label, prediction in found.items()}
    reserved = [prediction.reserved_gib for prediction in found.values()]
    display(stacked_bars(parts).add_scatter(x=reserved, y=labels, name="reserved", mode="markers", marker=RESERVED))
    display(Markdown(peaks_table(found)))
    return found


def through_a_step(question: CustomTraining) -> Prediction:
    """Predict one training, draw its memory at the four points of each step, and return the prediction."""
    (found,) = traced([question.spec], print)
    display(stacked_bars({_point(shot): parts_at(shot) for shot in found.memory.snapshots}))
    return found


def stacked_bars(bars: Bars) -> go.Figure:
    """Return stacked bars, the first on top: parts in GiB by the names of COLORS."""
    labels = list(bars)
    figure = go.Figure(
        [
            go.Bar(
                y=labels,
                x=[bars[label].get(name, 0.0) for label in labels],
                name=name,
                orientation="h",
                marker_color=color,
                hovertemplate="%{x:.3g} GiB",
            )
            for name, color in COLORS.items()
        ]
    )
    return figure.update_layout(
        barmode="stack",
        height=len(bars) * BAR_PX + FRAME_PX,
        margin={"t": 10, "b": 40},
        xaxis_title="GiB",
        yaxis={"autorange": "reversed"},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
        template="simple_white",
    )


def parts_at(shot: Snapshot) -> dict[str, float]:
    """Return the parts of the memory at one point, GiB by the names of COLORS."""
    return {part.name: getattr(shot, part.field) for part in AT_A_POINT}


def peaks_table(predictions: Mapping[str, Prediction]) -> str:
    """Return a Markdown table of each peak: its parts, its total, reserved memory, and the step where it occurs."""
    head = ["", *COLORS, "peak", "reserved", "peak in"]
    rows = [
        [label, *map(_gib, _parts(one).values()), _gib(one.peak_gib), _gib(one.reserved_gib), one.peak_phase]
        for label, one in predictions.items()
    ]
    lines = [head, ["---", *["---:"] * (len(head) - 2), "---"], *rows]
    return "GiB\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _parts(prediction: Prediction) -> dict[str, float]:
    return {part.name: getattr(prediction.at_peak, part.field) for part in AT_PEAK}


def _point(shot: Snapshot) -> str:
    return f"step {shot.step + 1}, {shot.point}"


def _gib(size: float) -> str:
    return f"{size:.2f}"
