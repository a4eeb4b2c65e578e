"""Compare the predicted time of an optimizer step with the measured one.

    python -m tests.benchmarks.training.step_times [FOLDER...]

Reads step_times.jsonl of each folder (default: experiments/evidence/prediction_h100 and prediction_h200): the
specification of each row, its speed, its device. Each row is traced here. Its step is predicted on the device's card
for the lengths of the measured batches, from the medians of the micro-steps, as it was measured. If a folder has a
host.jsonl, which `testbed calibrate --host` has written on the machine of the rows, the predictions are for this host,
and the text below the table also gives the error for the host of the table. Writes step_times.md and step_times.json
into each folder. Beside each prediction: the error with factors of the host's time that were fitted to the other suites
of all these folders only, and four simpler estimates: the time at the card's peak rate; the roofline, which is the
shortest possible time of each operation; the roofline times one factor for all rows on the GPU, fitted to the other
suites of the folder only; the estimate of RuntimeEstimator of PyTorch. Errors are relative to the measurement;
negative: too low.
"""

import argparse
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

from experiments.prediction import tracer
from experiments.prediction.phantom.library import Phantom, load
from experiments.prediction.times import host
from experiments.prediction.times.clocks import Clocks
from experiments.prediction.times.operations import parse
from experiments.prediction.times.phase import HOST_FACTORS, HostWork, PhaseTime, RecordedPhase
from experiments.prediction.times.step import phases_of_steps, share_of_new, step_time, table_for_card
from experiments.prediction.times.table import OperationTime, Table, read_lines
from experiments.results.predictions import RowStepTime
from experiments.results.schema import WARM_UP_STEPS, Speed
from experiments.suites.cards import Card, card_named, card_of_device
from experiments.suites.row_spec import RowSpec
from experiments.system.files import cache_folder
from experiments.training.measure.schedule import Timing, schedule_of
from tests.benchmarks.forks import run_in_fork
from tests.benchmarks.prediction.published_times.roofline import bound_s
from tests.benchmarks.prediction.tables import EVIDENCE, markdown, percent, relative_error, summary, write
from tests.benchmarks.training.torch_estimate import TorchEstimate, estimate_row

HEAD = [
    "row",
    "card of the row",
    "limited by",
    "predicted, s",
    "measured, s",
    "error",
    "error, suite held out",
    "spread",
    "peak rate, s",
    "roofline, s",
    "roofline times a factor",
    "RuntimeEstimator, s",
]
HOST_FILE = "host.jsonl"
FACTORS: list[Mapping[HostWork, float]] = [
    {**HOST_FACTORS, "backward": backward / 4, "layers": layers * 2e-5}
    for backward, layers in itertools.product(range(5, 10), range(2, 13))
]
"""Factors of the host's time among which a fit chooses."""


class Roofline(Table):
    """Table with the shortest possible time of each operation, and a host that needs no time."""

    def times(self, key: str, card: Card) -> OperationTime:
        return OperationTime(bound_s(parse(key), card), 0.0)


class Waits(NamedTuple):
    """The micro-steps after which a run waits for the GPU to read its times: from ``first`` on, each ``every``-th."""

    first: int
    every: int

    @classmethod
    def of_row(cls, row: Mapping[str, Any], spec: RowSpec, speed: Speed) -> "Waits | None":
        """Return the waits of a measured row. Older runs waited after each micro-step, newer ones after each step."""
        if spec.length != "verdict":
            return None
        accumulate = spec.settings.accumulate
        first = schedule_of("verdict", speed.planned_micro_steps, accumulate).minimum
        return cls(first, 1 if row.get("waited_in_steps") else accumulate)

    def follow(self, micro_step: int) -> bool:
        """Return whether a wait follows this micro-step, counted from 1."""
        return micro_step >= self.first and micro_step % self.every == 0


class TimedRow(NamedTuple):
    """A measured row, the card that measured it, its predicted time, the phases of its steps, and its roofline, s.

    steps: the phases of each step, for the lengths of the measured batches. tokens: median length of the batches'
    texts. host_ratio: time of the host that the prediction is for, relative to the reference host. waits: of the
    measured run.
    """

    spec: RowSpec
    card: str
    speed: Speed
    time: RowStepTime
    steps: list[list[PhaseTime]]
    roofline_s: float
    tokens: float | None
    host_ratio: float
    waits: Waits | None

    def predicted_s(self, factors: Mapping[HostWork, float] = HOST_FACTORS) -> float:
        """Return the predicted seconds of a step, as the run has measured it."""
        return step_s_from_medians(self.steps, factors, self.waits)

    def error_for_host_of_table(self) -> float:
        """Return the error of the prediction without the measured host."""
        factors = {kind: seconds / self.host_ratio for kind, seconds in HOST_FACTORS.items()}
        return self.error(factors)

    def error(self, factors: Mapping[HostWork, float]) -> float:
        return relative_error(self.predicted_s(factors), self.speed.step_s)

    def errors(self) -> list[float]:
        """Return the relative error of the time that follows with each of FACTORS."""
        return [self.error(factors) for factors in FACTORS]


def trace_row(row: dict[str, Any], phantom: Phantom) -> TimedRow:
    """Trace a measured row in a separate process."""
    return run_in_fork(_trace, row, phantom)


def _trace(row: dict[str, Any], phantom: Phantom) -> TimedRow:
    from experiments.training.data.texts import batch_lengths

    spec, speed, card = RowSpec.model_validate(row["spec"]), Speed.model_validate(row["speed"]), card_of(row)
    first, accumulate = WARM_UP_STEPS * spec.settings.accumulate, spec.settings.accumulate
    until_end = batch_lengths(spec)[: first + speed.measured_micro_steps]
    lengths, new_lengths = until_end[first:], share_of_new(until_end, first)
    tokens = median(lengths) if lengths else None
    found: list[TimedRow] = []

    def keep(
        recorded: Sequence[RecordedPhase], one: RowSpec, name: str, planned: int, all_lengths: Sequence[float]
    ) -> RowStepTime | None:
        time = step_time(recorded, one, name, planned, lengths)
        if name == card and time:
            table, target = table_for_card(card), card_named(card)
            tokens_of_steps = [
                lengths[begin : begin + accumulate] for begin in range(0, len(lengths) - accumulate + 1, accumulate)
            ]
            steps, shortest = (
                phases_of_steps(recorded, accumulate, tokens_of_steps or [None], times, target, new_lengths)
                for times in (table, Roofline(table.machine, {}))
            )
            roofline_s = median(sum(part.gpu_s for part in step) for step in shortest)
            waits = Waits.of_row(row, spec, speed)
            found.append(TimedRow(spec, card, speed, time, steps, roofline_s, tokens, table.host.other, waits))
        return time

    setattr(tracer, "step_time", keep)  # noqa: B010 - a function of a module
    tracer.trace(spec.model_copy(update={"length": "peak"}), [spec.card, card], phantom)
    return found[0]


def step_s_from_medians(
    steps: Sequence[Sequence[PhaseTime]],
    factors: Mapping[HostWork, float] = HOST_FACTORS,
    waits: Waits | None = None,
) -> float:
    """Return the seconds of a step as a run measures them: from the medians of its micro-steps.

    steps: the phases of each step. The first one also runs before the others, as a warm-up. factors: see HOST_FACTORS.
    waits: the micro-steps after which the run waited for the GPU; None: it never did.
    """
    clocks, ends_s = Clocks(), [0.0]
    simulated = [*[steps[0]] * WARM_UP_STEPS, *steps]
    for step in simulated:
        for part, following in itertools.pairwise([*step, None]):
            clocks.run(part, factors)
            if following is None or (part.phase != "forward" and following.phase == "forward"):
                ends_s.append(clocks.latest_s)
                if waits and waits.follow(len(ends_s) - 1):
                    clocks.wait()
    times_s = [end - begin for begin, end in itertools.pairwise(ends_s)]
    accumulate = len(times_s) // len(simulated)
    return Timing.from_times(times_s, accumulate).step_s(accumulate)


def card_of(row: dict[str, Any]) -> str:
    """Return the card on which the row was measured."""
    card = card_of_device(row["device"]["name"], row["device"]["memory_gib"])
    assert card, f"{row['device']['name']}: not in the catalog"
    return card


def fit_factors(errors: Sequence[Sequence[float]]) -> int:
    """Return the place in FACTORS of the factors with the smallest mean squared error. errors: of each row."""
    return min(range(len(FACTORS)), key=lambda place: fmean(row[place] ** 2 for row in errors))


def fitted_factor(rows: Sequence[TimedRow]) -> float:
    """Return the median ratio of the measured time to the roofline."""
    return median(row.speed.step_s / row.roofline_s for row in rows)


def compare_steps(
    row: TimedRow, others: Sequence[TimedRow], held_out_error: float, torch: TorchEstimate
) -> dict[str, Any]:
    """Return the predicted and the measured step of a row, and simpler estimates.

    others: rows of the other suites. held_out_error: with factors that were fitted to them. torch: the estimate of
    PyTorch's own estimator.
    """
    spec, speed, predicted_s = row.spec, row.speed, row.predicted_s()
    data_type = "fp32" if spec.settings.precision == "32-true" else "bf16"
    tflop = (speed.tflop_per_sample or 0.0) * spec.settings.batch_size * spec.settings.accumulate
    return {
        "row": f"{spec.suite}/{spec.row}",
        "card": spec.card,
        "limited_by": row.time.limited_by,
        "predicted_s": predicted_s,
        "measured_s": speed.step_s,
        "error": relative_error(predicted_s, speed.step_s),
        "held_out_error": held_out_error,
        "spread": speed.spread,
        "peak_rate_s": tflop / card_named(row.card).peak_tflops[data_type],
        "roofline_s": row.roofline_s,
        "factor_error": relative_error(fitted_factor(others) * row.roofline_s, speed.step_s),
        "torch_s": torch.step_s,
        "torch_reason": torch.reason,
    }


def reasons(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each reason for which RuntimeEstimator has no estimate, with its rows."""
    rows: dict[str, list[str]] = {}
    for one in found:
        if one["torch_reason"]:
            rows.setdefault(one["torch_reason"], []).append(one["row"])
    return [f"- RuntimeEstimator cannot run: {reason}: {', '.join(names)}" for reason, names in rows.items()]


def trace_folder(folder: Path, phantom: Phantom) -> list[TimedRow]:
    """Trace the rows of a folder, for the host that the folder names."""
    setattr(host, "host_sample_path", lambda _: folder / HOST_FILE)  # noqa: B010 - a function of a module
    return [trace_row(row, phantom) for row in read_lines(folder / "step_times.jsonl")]


def main() -> None:
    """Compare all rows, and write a table into each folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, default=[EVIDENCE.parent / "prediction_h100", EVIDENCE])
    folders = parser.parse_args().folders
    phantom = load(cache_folder())
    tracer.import_libraries(phantom)
    rows = {folder: trace_folder(folder, phantom) for folder in folders}
    with_factors = [(row, row.errors()) for known in rows.values() for row in known]
    for folder, known in rows.items():
        compare_folder(folder, known, with_factors, phantom)


def compare_folder(
    folder: Path, known: Sequence[TimedRow], with_factors: Sequence[tuple[TimedRow, list[float]]], phantom: Phantom
) -> None:
    """Compare the rows of a folder. with_factors: the rows of all folders with their errors for each of FACTORS."""
    host_file, found = folder / HOST_FILE, []
    for row in known:
        others = [one for one in known if one.spec.suite != row.spec.suite]
        fitted = fit_factors([errors for one, errors in with_factors if one.spec.suite != row.spec.suite])
        torch = estimate_row(row.spec, row.card, row.tokens, phantom)
        compared = compare_steps(row, others, row.error(FACTORS[fitted]), torch)
        compared["table_host_error"] = row.error_for_host_of_table() if host_file.exists() else None
        found.append(compared)
    errors, held_out_errors = [one["error"] for one in found], [one["held_out_error"] for one in found]
    simpler = {
        "peak_rate_errors": [relative_error(one["peak_rate_s"], one["measured_s"]) for one in found],
        "roofline_errors": [relative_error(one["roofline_s"], one["measured_s"]) for one in found],
        "factor_errors": [one["factor_error"] for one in found],
        "torch_errors": [relative_error(one["torch_s"], one["measured_s"]) for one in found if one["torch_s"]],
    }
    lines = [
        [
            one["row"],
            one["card"],
            one["limited_by"],
            f"{one['predicted_s']:.3f}",
            f"{one['measured_s']:.3f}",
            percent(one["error"]),
            percent(one["held_out_error"]),
            f"{one['spread']:.2f}",
            f"{one['peak_rate_s']:.3f}",
            f"{one['roofline_s']:.3f}",
            percent(one["factor_error"]),
            f"{one['torch_s']:.3f}" if one["torch_s"] else "n/a",
        ]
        for one in found
    ]
    data: dict[str, Any] = {
        "rows": found,
        "mean_error": fmean(map(abs, errors)),
        "errors": summary(errors),
        "fitted_factors": FACTORS[fit_factors([errors for _, errors in with_factors])],
        "held_out_mean_error": fmean(map(abs, held_out_errors)),
        "held_out_errors": summary(held_out_errors),
        **{name: {"mean": fmean(map(abs, each))} | summary(each) for name, each in simpler.items()},
    }
    text = markdown(HEAD, lines) + (
        f"\nError: mean {data['mean_error']:.1%}, worst {data['errors']['worst']:.1%}; with factors fitted to the"
        f" other suites: mean {data['held_out_mean_error']:.1%}, worst {data['held_out_errors']['worst']:.1%};"
        f" of the time at the peak rate: mean {data['peak_rate_errors']['mean']:.1%};"
        f" of the roofline: mean {data['roofline_errors']['mean']:.1%};"
        f" of the roofline times a factor: mean {data['factor_errors']['mean']:.1%};"
        f" of RuntimeEstimator: mean {data['torch_errors']['mean']:.1%} of {len(simpler['torch_errors'])} rows\n"
    )
    if host_file.exists():
        data["host_ratio"] = known[0].host_ratio
        data["table_host_mean_error"] = fmean(abs(one["table_host_error"]) for one in found)
        text += (
            f"\nThe host of these rows needs {data['host_ratio']:.2f} times as long as the host of the table. Without"
            f" this measurement, the mean error is {data['table_host_mean_error']:.1%}.\n"
        )
    text += "".join(f"\n{line}\n" for line in reasons(found))
    write(folder, "step_times", text, data)


if __name__ == "__main__":
    main()
