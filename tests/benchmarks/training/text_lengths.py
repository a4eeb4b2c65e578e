"""Compare the lengths of synthetic and real texts: quantiles of both, in tokens.

    python -m tests.benchmarks.training.text_lengths SUITE hub|FOLDER [BATCH_SIZE]

For the first row of a text suite at full size: lengths of texts, and of batches padded to their longest text. The real
texts are from the hub or from a folder of records; the tokenizer is always the model's, from the hub.
"""

import sys
from collections.abc import Sequence
from statistics import mean, quantiles

from experiments.suites.row_spec import RowSpec
from experiments.suites.suite import suite_named
from experiments.training.data.texts import TextDataset, build_text_loader, open_texts
from tests.benchmarks.rows import row_spec

VOCABULARY = 1 << 20
TENTHS = (1, 3, 5, 7, 9)


def length_summary(lengths: Sequence[int]) -> str:
    """Return the number of lengths, their mean, and five of their deciles."""
    deciles = quantiles(lengths, n=10)
    return f"{len(lengths):6} {mean(lengths):6.0f}  " + " ".join(f"{deciles[tenth - 1]:6.0f}" for tenth in TENTHS)


def batch_lengths(spec: RowSpec, texts: TextDataset) -> list[int]:
    """Return the padded length of each batch of an epoch, in tokens."""
    loader = build_text_loader(spec, texts, longest_batch_index=None)
    return [max(texts.lengths[index] for index in batch) for batch in loader.batch_sampler]


def row_of(suite_name: str, data: str, batch_size: int | None) -> RowSpec:
    """Return the suite's first row at full size on ``data``."""
    suite = suite_named(suite_name)
    batches = {"batch_size": batch_size, "accumulate": 1, "global_batch_size": batch_size} if batch_size else {}
    return row_spec(suite_name, suite.rows[0].id, suite.cards[0], "full", "as-taught", data=data, **batches)


def main() -> None:
    suite, data = sys.argv[1:3]
    batch_size = int(sys.argv[3]) if len(sys.argv) > 3 else None
    print(f"{'tokens':24} {'count':>6} {'mean':>6}  " + " ".join(f"{10 * tenth:5}%" for tenth in TENTHS))
    for name, source in (("synthetic", "synthetic"), ("real", data)):
        spec = row_of(suite, source, batch_size)
        texts = open_texts(spec, VOCABULARY)
        print(f"{name + ', texts':24} {length_summary(texts.lengths)}")
        print(f"{name + f', batches of {spec.settings.batch_size}':24} {length_summary(batch_lengths(spec, texts))}")


if __name__ == "__main__":
    main()
