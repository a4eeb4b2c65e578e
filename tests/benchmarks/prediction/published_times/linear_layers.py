"""Linear layers of the version of PyTorch that was timed (2.1, with CUDA 12.1).

The table of measured operations is from PyTorch 2.11 with CUDA 13.0, where a product with a bias in 32 bit takes longer
than one without. The source's own times of linear layers on the H100 are those of products without a bias.
"""

import functools
import json
from collections import Counter
from typing import Any

from experiments.prediction.times.phase import RecordedPhase
from experiments.prediction.times.table import Table
from experiments.suites.cards import Card
from tests.benchmarks.prediction.published_times.labels import LinearLayer, PublishedTimes
from tests.benchmarks.prediction.tables import relative_error

WITH_BIAS, WITHOUT_BIAS = "aten::addmm.out", "aten::mm.out"


def as_timed(recorded: RecordedPhase) -> RecordedPhase:
    """Return a pass whose products with a bias are replaced by those without."""
    operations: Counter[str] = Counter()
    for key, count in recorded.operations.items():
        operations[without_bias(key)] += count
    return recorded._replace(operations=operations)


@functools.lru_cache(maxsize=100_000)
def without_bias(key: str) -> str:
    """Return the key of the same product without a bias; other operations are unchanged."""
    name, *arguments = json.loads(key)
    if name != WITH_BIAS:
        return key
    _, left, right, _, _, result = arguments
    return _key(WITHOUT_BIAS, left, right, result)


def layer_key(layer: LinearLayer) -> str:
    """Return the key of a linear layer's forward pass."""
    bias, inputs = _tensor(layer.columns), _tensor(layer.rows, layer.depth)
    weight = _tensor(layer.depth, layer.columns) | {"strides": [1, layer.depth]}
    return _key(WITH_BIAS, bias, inputs, weight, 1, 1, _tensor(layer.rows, layer.columns))


def compare_layers(times: PublishedTimes, table: Table) -> list[dict[str, Any]]:
    """Return the measured and predicted ms of the linear layers, with and without a bias, and the relative errors."""
    return [_compare(layer, table, times.card(layer.card)) for layer in times.linear_layers]


def _compare(layer: LinearLayer, table: Table, card: Card) -> dict[str, Any]:
    key = layer_key(layer)
    bias_ms, none_ms = (1000 * table.times(one, card).device_s for one in (key, without_bias(key)))
    return {
        "card": layer.card,
        "sizes": [layer.rows, layer.columns, layer.depth],
        "measured_ms": layer.ms,
        "bias_ms": bias_ms,
        "bias_error": relative_error(bias_ms, layer.ms),
        "none_ms": none_ms,
        "none_error": relative_error(none_ms, layer.ms),
    }


def _tensor(*sizes: int) -> dict[str, Any]:
    return {"type": "Float", "sizes": list(sizes)}


def _key(*parts: Any) -> str:
    return json.dumps(parts, separators=(",", ":"))
