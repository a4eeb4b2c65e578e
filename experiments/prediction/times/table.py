"""Tables of operation times that were measured on one GPU; they also estimate times of other operations and cards."""

import functools
import gzip
import json
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from pydantic import Field

from experiments.prediction.times.limits import attainable_s
from experiments.prediction.times.operations import Operation, canonical_key, parse
from experiments.results.schema import Record
from experiments.suites.cards import Card, card_named, have_same_chip
from experiments.system.files import cache_folder

TABLES = Path(__file__).parent / "tables"
SUFFIXES = (".jsonl", ".jsonl.gz")
MEMORY_BOUND = ("element-wise", "reductions", "indexing", "copies")
LAYOUT_DISTANCE = 2.0
"""Added to the distance of two memory-bound operations if their tensors have different layouts. Sizes that differ by a
factor of e**2 add as much. Values from 1.5 to 6 have the same error in the benchmark estimated_operations."""
MAX_HOST_S = 8e-5
"""Longest host time of an operation that the host can start in advance while the GPU is occupied (``replay``)."""
UNKNOWN_SLOWDOWN, UNKNOWN_HOST_S = 2.0, 1e-5
"""Assumed for an operation without a similar measured one: time divided by the attainable time, and host time."""


class Machine(Record):
    """The machine on which the times of a table were measured."""

    card: str = Field(description="name of the card in the catalog")
    gpu: str = Field(description="name of the GPU that its driver reports")
    host: str = Field(description="processor and number of cores")
    torch: str = Field(description="version of PyTorch")
    command: str = Field(description="command that measured the times")
    date: str = Field(description="day of the measurement")
    corrections: str | None = Field(default=None, description="times that another command measured again or removed")


class OperationTime(NamedTuple):
    """Seconds of one operation: on the device, and on the host until it can start the next."""

    device_s: float
    host_s: float


def calibrated_table_path(card: str) -> Path:
    """Return the path of the table that ``testbed calibrate`` writes for this user's card."""
    return cache_folder() / "times" / f"{card}.jsonl"


def table_files() -> list[Path]:
    """Return the files of all tables: first the user's own, then those of the package."""
    folders = (calibrated_table_path("").parent, TABLES)
    return [path for folder in folders for path in sorted(folder.glob("*")) if path.name.endswith(SUFFIXES)]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a table of measured times: the first is the machine, each other line is one operation.

    Omits an incomplete last line.
    """
    lines = (gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()).splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


class Estimate(NamedTuple):
    """The times of an operation on the GPU of a table. attainable_s: the operation's attainable time on this GPU.

    is_measured: False if the times are those of a similar operation, scaled to the size of this operation.
    """

    operation: Operation
    times: OperationTime
    attainable_s: float
    is_measured: bool


class OperationFeatures(NamedTuple):
    """What determines whether an operation is similar to another.

    sizes: logarithms of its sizes. layout: the layout of a memory-bound operation; '' for other operations.
    """

    sizes: tuple[float, ...]
    layout: str

    def distance(self, other: "OperationFeatures") -> float:
        """Return how much two operations differ; infinite if their sizes are of different kinds."""
        if len(self.sizes) != len(other.sizes):
            return math.inf
        sizes = sum(abs(this - that) for this, that in zip(self.sizes, other.sizes, strict=True))
        return sizes + (LAYOUT_DISTANCE if self.layout != other.layout else 0.0)


class HostFactors(NamedTuple):
    """Time of the host that a prediction is about, relative to the hosts on which times were measured.

    operations: relative to the table's host, for the operations. other: relative to the reference host (see host.py),
    for the work that starts no operation. is_measured: whether `testbed calibrate --host` has measured the host.
    """

    operations: float = 1.0
    other: float = 1.0
    is_measured: bool = False


class MeasuredOperation(NamedTuple):
    """A measured operation. slowdown: its time divided by its attainable time."""

    features: OperationFeatures
    slowdown: float
    host_s: float


class Table:
    """Times of operations on one GPU, by key.

    An unmeasured operation is assumed to be as efficient as the most similar measured one.
    """

    def __init__(self, machine: Machine, measured: Mapping[str, OperationTime]) -> None:
        self.machine = machine
        self.card = card_named(machine.card)
        self.measured = measured
        self.host = HostFactors()
        self.is_own = False
        self._estimates: dict[str, Estimate] = {}

    @functools.cached_property
    def _by_computation(self) -> dict[str, OperationTime]:
        return {canonical_key(key): times for key, times in self.measured.items()}

    @functools.cached_property
    def _similar(self) -> dict[tuple[str, ...], list[MeasuredOperation]]:
        """Return the measured operations by group, without those for which the GPU waited for the host."""
        similar: dict[tuple[str, ...], list[MeasuredOperation]] = defaultdict(list)
        for key, times in self.measured.items():
            if not waited_for_host(operation := parse(key), times):
                slowdown = times.device_s / attainable_s(operation, self.card)
                measured = MeasuredOperation(_features(operation), slowdown, times.host_s)
                for group in _groups(operation):
                    similar[group].append(measured)
        return similar

    @functools.cached_property
    def _host_s(self) -> dict[tuple[str, ...], float]:
        """Return the median time of the host by group of similar operations, seconds."""
        host_s: dict[tuple[str, ...], list[float]] = defaultdict(list)
        for key, times in self.measured.items():
            for group in _groups(parse(key)):
                host_s[group].append(times.host_s)
        return {group: median(seconds) for group, seconds in host_s.items()}

    def prepare(self) -> None:
        """Compute what estimates need, so that the forks of this process need not compute it again."""
        _ = self._by_computation, self._similar, self._host_s

    @classmethod
    def read(cls, path: Path) -> "Table":
        """Read a table that a calibration wrote."""
        first, *lines = read_lines(path)
        measured = {
            line["key"]: OperationTime(line["device_s"], line["host_s"]) for line in lines if "device_s" in line
        }
        return cls(Machine.model_validate(first), measured)

    def times(self, key: str, card: Card) -> OperationTime:
        """Return the times of an operation on ``card``. The host is assumed to be the one of the table.

        The host time is at most the median of similar operations: longer times include waiting for the GPU.
        """
        operation, times, table_attainable_s, _ = self._estimate(key)
        return OperationTime(times.device_s * attainable_s(operation, card) / table_attainable_s, times.host_s)

    def is_measured(self, key: str) -> bool:
        """Return whether the operation itself was measured."""
        return self._estimate(key).is_measured

    def _estimate(self, key: str) -> Estimate:
        if key not in self._estimates:
            self._estimates[key] = self._new_estimate(key)
        return self._estimates[key]

    def _new_estimate(self, key: str) -> Estimate:
        operation, measured_times = parse(key), self._by_computation.get(canonical_key(key))
        table_attainable_s = attainable_s(operation, self.card)
        if measured_times:
            device_s, host_s = measured_times
        else:
            similar = self._most_similar(operation)
            device_s, host_s = table_attainable_s * similar.slowdown, similar.host_s
        median_s = next((self._host_s[group] for group in _groups(operation) if group in self._host_s), host_s)
        return Estimate(
            operation, OperationTime(device_s, min(host_s, median_s)), table_attainable_s, measured_times is not None
        )

    def _most_similar(self, operation: Operation) -> MeasuredOperation:
        features = _features(operation)
        for group in _groups(operation):
            if candidates := self._similar.get(group):
                return min(candidates, key=lambda one: one.features.distance(features))
        return MeasuredOperation(features, UNKNOWN_SLOWDOWN, UNKNOWN_HOST_S)

    def has_chip_of(self, card: str) -> bool:
        """Return whether the table was measured on the card, or on another card with its chip."""
        return self.machine.card == card or have_same_chip(self.machine.card, card)


def waited_for_host(operation: Operation, times: OperationTime) -> bool:
    """Return whether the GPU had to wait for the host during the measurement, so that the measured time is too long.

    In transfers from and to the host, the GPU always waits for the host.
    """
    return operation.family != "host transfers" and times.device_s < times.host_s > MAX_HOST_S


def _groups(operation: Operation) -> tuple[tuple[str, ...], ...]:
    """Return the groups of similar operations, the most similar first.

    An optimizer's operation on few tensors resembles an element-wise one. On many, it needs time for each tensor.
    """
    has_few_tensors = operation.name.startswith(("aten::_foreach", "bitsandbytes::optimizer")) and not any(
        "tensors" in one for one in operation.tensors
    )
    family, data_type = "element-wise" if has_few_tensors else operation.family, operation.data_type
    base = operation.name.partition(".")[0].rstrip("_")
    return (family, data_type, base), (family, data_type), (family,)


def _features(operation: Operation) -> OperationFeatures:
    """Return the sizes of a matrix product, or the arithmetic and bytes of another operation; and its layout."""
    sizes = operation.product_sizes or (operation.flop + 1, operation.total_bytes + 1)
    layout = operation.layout if operation.family in MEMORY_BOUND else ""
    return OperationFeatures(tuple(math.log(max(1, size)) for size in sizes), layout)
