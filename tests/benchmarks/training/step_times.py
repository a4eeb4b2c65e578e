"""Compare the predicted time of an optimizer step with the measured one.

    python -m tests.benchmarks.training.step_times [FOLDER]

Reads FOLDER/step_times.jsonl (default: experiments/evidence/prediction_h100): the specification of each row, its speed,
its device. Each row is traced here, for the same batches, and its step is predicted on the device's card. Writes
step_times.md and step_times.json into the folder. Beside each prediction: the time at the card's peak rate.
Errors are relative to the measurement; negative: the prediction is too low.
"""

import argparse
import json
import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.prediction import tracer
from experiments.prediction.phantom.library import Phantom, load
from experiments.results.predictions import Prediction
from experiments.results.schema import Speed
from experiments.suites.cards import card_named, card_of_device
from experiments.suites.row_spec import RowSpec
from experiments.system.files import cache_folder
from experiments.training.measure.schedule import WARM_UP_STEPS
from tests.benchmarks.prediction.tables import EVIDENCE, error, markdown, percent, summary, write

FORK = multiprocessing.get_context("fork")
HEAD = ["row", "card of the row", "limited by", "predicted, s", "measured, s", "error", "spread", "peak rate, s"]


def predicted(row: dict[str, Any], phantom: Phantom) -> Prediction:
    """Return the prediction of a measured row, traced in a separate process."""
    here, there = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_trace, args=(row, phantom, there))
    process.start()
    there.close()
    found: Prediction = here.recv()
    process.join()
    return found


def _trace(row: dict[str, Any], phantom: Phantom, out: Connection) -> None:
    from experiments.training.data import texts

    spec, speed = RowSpec.model_validate(row["spec"]), Speed.model_validate(row["speed"])
    first = WARM_UP_STEPS * spec.settings.accumulate
    whole_epoch = texts.batch_lengths
    setattr(  # noqa: B010 - a function of a module
        texts, "batch_lengths", lambda spec: whole_epoch(spec)[first : first + speed.measured_micro_steps]
    )
    traced = spec.model_copy(update={"length": "peak"})
    out.send(tracer.trace(traced, [spec.card, card_of(row)], phantom)[1])


def card_of(row: dict[str, Any]) -> str:
    """Return the card on which the row was measured."""
    card = card_of_device(row["device"]["name"], row["device"]["memory_gib"])
    assert card, f"{row['device']['name']}: not in the catalog"
    return card


def compared(row: dict[str, Any], prediction: Prediction) -> dict[str, Any]:
    """Return the predicted and the measured step of a row, and that at the card's peak rate."""
    spec, speed, time = prediction.spec, Speed.model_validate(row["speed"]), prediction.time
    assert time, f"{spec.row}: no time"
    data_type = "fp32" if spec.settings.precision == "32-true" else "bf16"
    tflop = (speed.tflop_per_sample or 0.0) * spec.settings.batch_size * spec.settings.accumulate
    return {
        "row": f"{spec.suite}/{spec.row}",
        "card": row["spec"]["card"],
        "limited_by": time.limited_by,
        "predicted_s": time.step_s,
        "measured_s": speed.step_s,
        "error": error(time.step_s, speed.step_s),
        "spread": speed.spread,
        "peak_rate_s": tflop / card_named(spec.card).peak_tflops[data_type],
    }


def main() -> None:
    """Compare all rows and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=EVIDENCE.parent / "prediction_h100")
    folder = parser.parse_args().folder
    rows = [json.loads(line) for line in (folder / "step_times.jsonl").read_text().splitlines()]
    phantom = load(cache_folder())
    tracer.import_libraries(phantom)
    found = [compared(row, predicted(row, phantom)) for row in rows]
    errors = [one["error"] for one in found]
    peak_errors = [error(one["peak_rate_s"], one["measured_s"]) for one in found]
    lines = [
        [
            one["row"],
            one["card"],
            one["limited_by"],
            f"{one['predicted_s']:.3f}",
            f"{one['measured_s']:.3f}",
            percent(one["error"]),
            f"{one['spread']:.2f}",
            f"{one['peak_rate_s']:.3f}",
        ]
        for one in found
    ]
    data: dict[str, Any] = {
        "rows": found,
        "mean_error": fmean(map(abs, errors)),
        "errors": summary(errors),
        "peak_rate_errors": summary(peak_errors),
    }
    text = markdown(HEAD, lines) + (
        f"\nError: mean {data['mean_error']:.1%}, worst {data['errors']['worst']:.1%}; of the time at the peak rate:"
        f" median {data['peak_rate_errors']['median']:.1%}, worst {data['peak_rate_errors']['worst']:.1%}\n"
    )
    write(folder, "step_times", text, data)


if __name__ == "__main__":
    main()
