"""Tables of measured operation times of one GPU; they also estimate other operations and other cards."""

import gzip
import heapq
import json
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from pydantic import Field

from experiments.prediction.times.limits import attainable_s
from experiments.prediction.times.operations import Operation, parse
from experiments.results.schema import Record
from experiments.suites.cards import Card, card_named, have_same_chip
from experiments.system.files import cache_folder

TABLES = Path(__file__).parent / "tables"
SUFFIXES = (".jsonl", ".jsonl.gz")
MEMORY_BOUND = ("element-wise", "reductions", "indexing", "copies")
UNKNOWN_SLOWDOWN, UNKNOWN_HOST_S = 2.0, 1e-5
"""Assumed time of an operation that resembles no measured one: relative to the attainable time, and of the host."""
NEIGHBORS, NEIGHBORS_WITHIN = 3, math.log(2)
"""An operation that was not measured is assumed to have the median efficiency of the most similar operations: at most
this number, whose sizes differ from its own at most by this factor (logarithm) more than those of the most similar."""


class Machine(Record):
    """The machine on which the times of a table were measured."""

    card: str = Field(description="name of the card in the catalog")
    gpu: str = Field(description="name of the GPU that its driver reports")
    host: str = Field(description="processor and number of cores")
    torch: str = Field(description="version of PyTorch")
    command: str = Field(description="command that measured the times")
    date: str = Field(description="day of the measurement")


class OperationTime(NamedTuple):
    """Seconds of one operation: on the device, and on the host until it can start the next."""

    device_s: float
    host_s: float


def canonical(key: str) -> str:
    """Return the key with 0.5 for each number that is not an integer: these numbers do not affect the time."""
    return json.dumps(_without_fractions(json.loads(key)), separators=(",", ":"))


def _without_fractions(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_fractions(one) for one in value]
    if isinstance(value, dict):
        return {name: _without_fractions(one) for name, one in value.items()}
    return 0.5 if isinstance(value, float) else value


def own_table_path(card: str) -> Path:
    """Return the path of the table that ``testbed calibrate`` writes for this user's card."""
    return cache_folder() / "times" / f"{card}.jsonl"


def table_files() -> list[Path]:
    """Return the files of all tables: first the user's own, then those of the package."""
    folders = (own_table_path("").parent, TABLES)
    return [path for folder in folders for path in sorted(folder.glob("*")) if path.name.endswith(SUFFIXES)]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a table of measured times: the first is the machine, each other line is one operation.

    Omits an incomplete last line.
    """
    lines = (gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()).splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


class Estimate(NamedTuple):
    """The times of an operation on the GPU of a table. attainable_s: its attainable time there, seconds.

    measured: False if the times are those of similar operations, scaled to this one's size.
    """

    operation: Operation
    times: OperationTime
    attainable_s: float
    measured: bool


class MeasuredOperation(NamedTuple):
    """A measured operation. sizes: logarithms of the sizes that it has in common with similar operations.

    slowdown: its time divided by its attainable time.
    """

    sizes: tuple[float, ...]
    slowdown: float
    host_s: float


class Table:
    """Times of operations on one GPU, by key.

    An unmeasured operation is assumed to be as efficient as the most similar measured ones.
    """

    def __init__(self, machine: Machine, measured: Mapping[str, OperationTime]) -> None:
        self.machine = machine
        self.card = card_named(machine.card)
        self.measured = measured
        self._similar: dict[tuple[str, ...], list[MeasuredOperation]] = defaultdict(list)
        for key, times in measured.items():
            operation = parse(key)
            slowdown = times.device_s / attainable_s(operation, self.card)
            one = MeasuredOperation(_log_sizes(operation), slowdown, times.host_s)
            for group in _groups(operation):
                self._similar[group].append(one)
        self._estimates: dict[str, Estimate] = {}
        self._host_s = {group: median(one.host_s for one in found) for group, found in self._similar.items()}

    @classmethod
    def read(cls, path: Path) -> "Table":
        """Read a table that a calibration wrote."""
        first, *lines = read_lines(path)
        found = {line["key"]: OperationTime(line["device_s"], line["host_s"]) for line in lines if "device_s" in line}
        return cls(Machine.model_validate(first), found)

    def times(self, key: str, card: Card) -> OperationTime:
        """Return the times of an operation on ``card``. The host is assumed to be the measured one.

        The host time is at most the median of similar operations: longer times include waiting for the GPU.
        """
        operation, times, own_s, _ = self._estimate(key)
        return OperationTime(times.device_s * attainable_s(operation, card) / own_s, times.host_s)

    def is_measured(self, key: str) -> bool:
        """Return whether the operation itself was measured."""
        return self._estimate(key).measured

    def _estimate(self, key: str) -> Estimate:
        if key not in self._estimates:
            self._estimates[key] = self._new_estimate(canonical(key))
        return self._estimates[key]

    def _new_estimate(self, key: str) -> Estimate:
        operation, found = parse(key), self.measured.get(key)
        own_s = attainable_s(operation, self.card)
        if found:
            device_s, host_s = found
        else:
            similar = self._most_similar(operation)
            device_s = own_s * median(one.slowdown for one in similar)
            host_s = similar[0].host_s
        usual_s = next((self._host_s[one] for one in _groups(operation)[-3:] if one in self._host_s), host_s)
        return Estimate(operation, OperationTime(device_s, min(host_s, usual_s)), own_s, found is not None)

    def _most_similar(self, operation: Operation) -> list[MeasuredOperation]:
        sizes = _log_sizes(operation)
        for group in _groups(operation):
            if found := self._similar.get(group):
                nearest = heapq.nsmallest(NEIGHBORS, found, key=lambda one: _distance(one.sizes, sizes))
                limit = _distance(nearest[0].sizes, sizes) + NEIGHBORS_WITHIN
                return [one for one in nearest if _distance(one.sizes, sizes) <= limit]
        return [MeasuredOperation(sizes, UNKNOWN_SLOWDOWN, UNKNOWN_HOST_S)]

    def is_of(self, card: str) -> bool:
        """Return whether the table was measured on the card, or on another card with its chip."""
        return self.machine.card == card or have_same_chip(self.machine.card, card)


def _groups(operation: Operation) -> tuple[tuple[str, ...], ...]:
    """Return the groups of similar operations, the most similar first.

    On few tensors, a _foreach operation resembles an element-wise one; on many, it needs time for each tensor.
    """
    few = operation.name.startswith("aten::_foreach") and not any("tensors" in one for one in operation.tensors)
    family, data_type = "element-wise" if few else operation.family, operation.data_type
    name = operation.name.partition(".")[0]
    alike = ((family, data_type, name, operation.layout),) if family in MEMORY_BOUND else ()
    return *alike, (family, data_type, name), (family, data_type), (family,)


def _log_sizes(operation: Operation) -> tuple[float, ...]:
    """Return logarithms: of the sizes of a matrix product, otherwise of the operation's arithmetic and bytes."""
    sizes = operation.product_sizes or (operation.flop + 1, operation.total_bytes + 1)
    return tuple(math.log(max(1, size)) for size in sizes)


def _distance(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Return the distance of two operations by their sizes; infinite if these are of different kinds."""
    return sum(abs(x - y) for x, y in zip(a, b, strict=True)) if len(a) == len(b) else math.inf
