"""Tables of measured operation times of one GPU; they also estimate other operations and other cards."""

import gzip
import json
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from pydantic import Field

from experiments.prediction.times.operations import Operation, canonical, parse
from experiments.results.schema import Record
from experiments.suites.cards import Card, card_named, have_same_chip
from experiments.system.files import cache_folder

TABLES = Path(__file__).parent / "tables"
SUFFIXES = (".jsonl", ".jsonl.gz")
TENSOR_TYPES = {"BFloat16": "bf16", "Half": "fp16", "Float": "fp32"}
MIN_KERNEL_S = 2e-6
"""Shortest time of a kernel, seconds."""


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
    """The times of an operation on the GPU of a table. bound_s: its shortest possible time there, seconds.

    measured: False if the times are those of a similar operation, scaled to this one's size.
    """

    operation: Operation
    times: OperationTime
    bound_s: float
    measured: bool


class MeasuredOperation(NamedTuple):
    """A measured operation.

    sizes: logarithms of its floating-point operations and of its bytes. bound_s: its shortest possible time, seconds.
    """

    sizes: tuple[float, float]
    bound_s: float
    times: OperationTime


class Table:
    """Times of operations on one GPU, by key.

    An unmeasured operation is assumed to be as efficient as the most similar measured one.
    """

    def __init__(self, machine: Machine, measured: Mapping[str, OperationTime]) -> None:
        self.machine = machine
        self.card = card_named(machine.card)
        self.measured = {canonical(key): times for key, times in measured.items()}
        self._similar: dict[tuple[str, ...], list[MeasuredOperation]] = defaultdict(list)
        for key, times in measured.items():
            operation = parse(key)
            one = MeasuredOperation(_log_sizes(operation), bound_s(operation, self.card), times)
            for group in _groups(operation):
                self._similar[group].append(one)
        self._estimates: dict[str, Estimate] = {}
        self._host_s = {group: median(one.times.host_s for one in found) for group, found in self._similar.items()}

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
        operation, times, own_bound_s, _ = self._estimate(key)
        return OperationTime(times.device_s * bound_s(operation, card) / own_bound_s, times.host_s)

    def is_measured(self, key: str) -> bool:
        """Return whether the operation itself was measured."""
        return self._estimate(key).measured

    def _estimate(self, key: str) -> Estimate:
        if key not in self._estimates:
            self._estimates[key] = self._new_estimate(key)
        return self._estimates[key]

    def _new_estimate(self, key: str) -> Estimate:
        operation, found = parse(key), self.measured.get(canonical(key))
        own_bound_s = bound_s(operation, self.card)
        if found:
            device_s, host_s = found
        else:
            similar = self._most_similar(operation)
            device_s = similar.times.device_s * own_bound_s / similar.bound_s
            host_s = similar.times.host_s
        usual_s = next((self._host_s[group] for group in _groups(operation) if group in self._host_s), host_s)
        return Estimate(operation, OperationTime(device_s, min(host_s, usual_s)), own_bound_s, found is not None)

    def _most_similar(self, operation: Operation) -> MeasuredOperation:
        flop, size = _log_sizes(operation)
        for group in _groups(operation):
            if found := self._similar.get(group):
                return min(found, key=lambda one: abs(one.sizes[0] - flop) + abs(one.sizes[1] - size))
        least_s = bound_s(operation, self.card)
        return MeasuredOperation((flop, size), least_s, OperationTime(2 * least_s, 1e-5))

    def is_of(self, card: str) -> bool:
        """Return whether the table was measured on the card, or on another card with its chip."""
        return self.machine.card == card or have_same_chip(self.machine.card, card)


def _groups(operation: Operation) -> tuple[tuple[str, ...], ...]:
    """Return the groups of similar operations, the most similar first.

    On few tensors, an optimizer's operation resembles an element-wise one; on many, it needs time for each tensor.
    """
    few = operation.name.startswith(("aten::_foreach", "bitsandbytes::optimizer")) and not any(
        "tensors" in one for one in operation.tensors
    )
    family, data_type = "element-wise" if few else operation.family, operation.data_type
    base = operation.name.partition(".")[0].rstrip("_")
    return (family, data_type, base), (family, data_type), (family,)


def _log_sizes(operation: Operation) -> tuple[float, float]:
    return math.log(operation.flop + 1), math.log(operation.total_bytes + 1)


def bound_s(operation: Operation, card: Card) -> float:
    """Return the shortest possible seconds of an operation: limited by arithmetic, bandwidth or kernel launch."""
    rate = card.peak_tflops.get(TENSOR_TYPES.get(operation.data_type, "fp32")) or card.peak_tflops["fp32"]
    return max(operation.flop / (rate * 1e12), operation.total_bytes / (card.bandwidth_gb_s * 1e9), MIN_KERNEL_S)
