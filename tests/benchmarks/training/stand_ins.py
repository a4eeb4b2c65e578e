"""Compare measured peaks with the peaks predicted for the card of the run, and for the GPU that emulated this card.

    python -m tests.benchmarks.training.stand_ins [--out FOLDER] [NAME...]

NAME: the folder of a stored run (experiments/evidence); default: those of `beyond` and `ladder`. Only rows on one GPU
that fit and are not compiled are compared; for compiled rows, the prediction is only an upper bound. A GPU that
emulates a card has the card's memory limit and attention kernels, but its own cuBLAS workspaces. Writes stand_ins.md
into FOLDER (default: experiments/evidence/prediction_h200).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments.evidence.renew import EVIDENCE
from experiments.prediction.predict import predict
from experiments.results.run_folder import RunFolder
from experiments.results.schema import Result
from experiments.suites.row_spec import RowSpec
from experiments.system.files import cache_folder, write_atomically
from tests.benchmarks.prediction.tables import markdown, percent, relative_error, summary

STORED = ("beyond-a100_80gb-full-verdict", "ladder-a100_80gb-full-verdict")
OUT = EVIDENCE / "prediction_h200"


def measured_rows(names: Sequence[str]) -> list[Result]:
    """Return the results of the stored runs ``names`` that can be compared."""
    found = [result for name in names for result in RunFolder(EVIDENCE / name).results().values()]
    return [one for one in found if one.outcome == "fits" and not one.spec.settings.compile and _stands_in(one)]


def predicted_peaks(results: Sequence[Result]) -> list[tuple[float, float]]:
    """Return for each result the peak, GiB, predicted for the card, and for the GPU that emulated this card."""
    specs = [
        spec
        for result in results
        for spec in (_row_for_card(result, result.spec.card), _row_for_card(result, _gpu(result)))
    ]
    peaks = [prediction.peak_gib for prediction in predict(specs, cache_folder())]
    return list(zip(peaks[::2], peaks[1::2], strict=True))


def table(results: Sequence[Result], peaks: Sequence[tuple[float, float]]) -> str:
    """Return the comparison as Markdown: measured peaks, and the errors of both predictions relative to them."""
    lines, errors = [], []
    for result, both in zip(results, peaks, strict=True):
        measured = result.memory.peak_gib
        assert measured is not None, "a row that fits has a peak"
        found = [relative_error(predicted, measured) for predicted in both]
        errors.append(found)
        lines.append([f"{result.spec.suite}/{result.spec.row}", f"{measured:.3f}", *(percent(one) for one in found)])
    card, gpu = results[0].spec.card, _gpu(results[0])
    summaries = [(name, summary(one)) for name, one in zip((card, gpu), zip(*errors, strict=True), strict=True)]
    words = "; ".join(
        f"for {name}: median {percent(one['median'])}, largest {percent(one['worst'])}" for name, one in summaries
    )
    return f"{markdown(['row', 'measured GiB', f'for {card}', f'for {gpu}'], lines)}\n\nAbsolute errors {words}.\n"


def _stands_in(result: Result) -> bool:
    return result.spec.settings.gpus == 1 and result.device is not None and result.device.card != result.spec.card


def _gpu(result: Result) -> str:
    card = result.device and result.device.card
    assert card, "the GPUs that measured are known cards"
    return card


def _row_for_card(result: Result, card: str) -> RowSpec:
    return result.spec.model_copy(update={"card": card, "length": "peak"})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", default=STORED, metavar="NAME", help="folder of a stored run")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the table")
    options = parser.parse_args(arguments)
    results = measured_rows(options.names)
    text = table(results, predicted_peaks(results))
    write_atomically(options.out / "stand_ins.md", text)
    print(text)


if __name__ == "__main__":
    main()
