"""Describe the predicted time of a script's optimizer step."""

from collections.abc import Mapping, Sequence

from experiments.prediction.script.record import CardPrediction, ScriptPrediction
from experiments.results.predictions import StepTime
from experiments.results.wording import format_number
from experiments.system.tables import Column

STEP_COLUMN = Column("step", number=True, optional=1)
SAMPLES_COLUMN = Column("samples/s", number=True, optional=1)
NOT_INCLUDED = "loading data and other work of the program on the CPU are not included"


def samples_per_s(card: CardPrediction, samples: int | None) -> float | None:
    """Return the samples per second over all GPUs; None if they are unknown.

    samples: the number of samples in an optimizer step.
    """
    return samples / card.time.step_s if samples and card.time else None


def speed_as_data(card: CardPrediction, samples: int | None) -> dict[str, str | float | None]:
    """Return what limits a step on the card and the samples per second as a JSON-compatible object.

    samples: the number of samples in an optimizer step.
    """
    limited_by = card.time.limited_by if card.time else None
    return {"limited_by": limited_by, "samples_per_s": samples_per_s(card, samples)}


def step_cell(card: CardPrediction) -> str:
    """Format the time of a step with its error; '' if it is not predicted, or if the training does not fit."""
    return card.time.words if card.time and card.margin_gib >= 0 else ""


def samples_cell(card: CardPrediction, samples: int | None) -> str:
    """Format the samples per second; '' if they are unknown, or if the training does not fit."""
    speed = samples_per_s(card, samples)
    return format_number(speed) if speed and card.margin_gib >= 0 else ""


def describe_fastest(what: str, speeds: Mapping[str, tuple[float, StepTime]], unit: str) -> list[str]:
    """Return a line with the fastest of several trainings; [] if fewer than two have a speed.

    what: the noun for one training, such as 'change'. speeds: for each training, by name,
    the speed in ``unit`` and the time of a step.
    """
    if len(speeds) < 2:
        return []
    fastest = max(speeds, key=lambda name: speeds[name][0])
    speed, time = speeds[fastest]
    return [f"fastest {what} that fits: {fastest}, {format_number(speed)} {unit} ±{time.error_share:.0%}"]


def describe_time(prediction: ScriptPrediction, card: CardPrediction, samples: int | None) -> str:
    """Describe in one line the time of a step on a card, what limits it, and the seconds of each part of the machine.

    The parts are those of ``describe_step``. '' if the training does not fit the card.
    """
    if card.margin_gib < 0:
        return ""
    if card.time is None:
        reason = prediction.time_unknown or f"{card.card} has no arithmetic in the data type of the training"
        return f"time of a step unknown: {reason}"
    return describe_step(card.time, card.card, samples_per_s(card, samples))


def describe_step(time: StepTime, card: str, speed: float | None) -> str:
    """Describe in one line the time of a step on a card, what limits it, and the seconds of each part of the machine.

    The parts are the host, the GPU, the links between GPUs, and the optimizer if it runs on the CPU. Parts without work
    are left out. speed: in samples/s; None: unknown.
    """
    seconds_by_part = {
        "host": time.host_s - time.cpu_optimizer_s,
        "GPU": sum(time.device_s.values()),
        "links": time.link_s,
        "optimizer on the CPU": time.cpu_optimizer_s,
    }
    words = [f"step {time.words} on {card}"]
    words += [f"{format_number(speed)} samples/s"] if speed else []
    words.append(f"limited by {time.limited_by}")
    parts = ", ".join(f"{name} {format_number(seconds)} s" for name, seconds in seconds_by_part.items() if seconds)
    return f"{', '.join(words)} ({parts})"


UNMEASURED_HOST = "the host is that of this GPU's machine; `testbed calibrate --host` measures another one"


def time_notes(predictions: Sequence[ScriptPrediction]) -> list[str]:
    """Return a note on the times that are shown, if there are any."""
    return source_notes([card.time for one in predictions for card in one.cards if card.time and card.margin_gib >= 0])


def source_notes(times: Sequence[StepTime]) -> list[str]:
    """Return a note on the source of predicted times, and on what they do not include; [] without times."""
    if not times:
        return []
    share = max(time.unmeasured_share or 0.0 for time in times)
    estimated = f"; {share:.0%} of the GPU's time is estimated from similar operations" if share else ""
    gpus = " or ".join(sorted({time.measured_on for time in times}))
    measured = [time.host_is_measured for time in times]
    host = "the host that you measured" if all(measured) else UNMEASURED_HOST
    if any(measured) and not all(measured):
        host = f"for some cards, the host that you measured; for the others, {UNMEASURED_HOST}"
    return [f"step: from operations measured on one {gpus}, scaled to other cards{estimated}; {host}; {NOT_INCLUDED}"]
