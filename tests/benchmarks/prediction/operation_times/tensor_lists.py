"""Measure operations on lists of tensors with the tensor lengths of models, and with lengths that are no multiple of 4.

    python -m tests.benchmarks.prediction.operation_times.tensor_lists measure   on an H200
    python -m tests.benchmarks.prediction.operation_times.tensor_lists compare
    python -m tests.benchmarks.prediction.operation_times.tensor_lists apply

The tables of operation times were first measured with lists of equal tensors of any length. PyTorch's kernels load
several elements at a time only from tensors with a multiple of 4 elements, so these times were up to twice as long as
those of an optimizer. ``measure`` writes experiments/evidence/prediction_h200/tensor_lists.jsonl: for each operation of
the H200's table, the seconds of the GPU with both lengths. ``compare`` writes tensor_lists.md beside it. ``apply``
takes the times for lengths of models into the table of the H200. From the table of the H100, it removes the times for
other lengths if such operations take more than MAX_RATIO times as long on the H200; they are then estimated from
similar ones.
"""

import gzip
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

from experiments.prediction.times import replay
from experiments.prediction.times.operations import parse
from experiments.prediction.times.table import TABLES, Table, read_lines
from experiments.system.files import write_atomically
from tests.benchmarks.prediction.tables import EVIDENCE, markdown

FILE = EVIDENCE / "tensor_lists.jsonl"
H200, H100 = TABLES / "h200_141gb.jsonl.gz", TABLES / "h100_80gb.jsonl.gz"
VECTOR = 4
"""Number of elements that a thread of PyTorch's kernels loads at a time (kILP in MultiTensorApply.cuh)."""
MAX_RATIO = 1.2
Group = tuple[str, str]
COMMAND = "python -m tests.benchmarks.prediction.operation_times.tensor_lists"


def list_lengths(key: str) -> list[int]:
    """Return the lengths of an operation's list tensors before the correction; [] without lists."""
    return [one["elements"] // one["tensors"] for one in parse(key).tensors if "tensors" in one]


def is_slow(key: str) -> bool:
    """Return whether the operation was measured with lengths that are no multiple of VECTOR."""
    return any(length % VECTOR for length in list_lengths(key))


def measure() -> None:
    """Measure each operation on lists of the H200's table with both lengths."""
    import torch

    name, lines = torch.cuda.get_device_name(), []
    for key in (key for key in Table.read(H200).measured if list_lengths(key)):
        lines.append({"key": key, "device_s": _seconds(key, 64), "any_length_s": _seconds(key, 1)})
    first = {"gpu": name, "torch": torch.__version__, "command": f"{COMMAND} measure"}
    write_atomically(FILE, "".join(json.dumps(line) + "\n" for line in [first, *lines]))


def _seconds(key: str, multiple: int) -> float:
    """Return the seconds of the GPU with tensors whose lengths are multiples of ``multiple``."""
    replay.VECTOR_ELEMENTS = multiple
    return float(f"{replay.measure(parse(key)).device_s:.4g}")


def group_of(key: str) -> Group:
    """Return the data type and the name of an operation."""
    operation = parse(key)
    return operation.data_type, operation.name


def ratios() -> dict[Group, list[float]]:
    """Return by group how many times as long the operations take with any length as with those of models."""
    _, *lines = read_lines(FILE)
    groups: dict[Group, list[float]] = {}
    for line in filter(lambda line: is_slow(line["key"]), lines):
        groups.setdefault(group_of(line["key"]), []).append(line["any_length_s"] / line["device_s"])
    return groups


def compare() -> None:
    """Write the table of both times, by data type and operation."""
    cells = [[kind, name, str(len(each)), f"{median(each):.2f}"] for (kind, name), each in sorted(ratios().items())]
    text = markdown(["data type", "operation", "sizes", "time with any length / with those of models"], cells)
    print(text)
    write_atomically(EVIDENCE / "tensor_lists.md", text)


def apply() -> None:
    """Correct both tables."""
    _, *lines = read_lines(FILE)
    again = {line["key"]: line["device_s"] for line in lines}
    _rewrite(H200, "lists of tensors: GPU times measured again", lambda line: [line | _device_s(line, again)])
    slow_groups = {group for group, each in ratios().items() if median(each) > MAX_RATIO}
    _rewrite(
        H100,
        "lists of tensors: times with unusual lengths removed",
        lambda line: [] if is_slow(line["key"]) and group_of(line["key"]) in slow_groups else [line],
    )


def _device_s(line: dict[str, Any], again: dict[str, float]) -> dict[str, float]:
    return {"device_s": again[line["key"]]} if "device_s" in line and line["key"] in again else {}


def _rewrite(path: Path, what: str, change: Callable[[dict[str, Any]], Iterable[dict[str, Any]]]) -> None:
    machine, *lines = read_lines(path)
    corrected = [machine | {"corrections": f"{what} ({COMMAND} apply)"}]
    corrected += [new for line in lines for new in change(line)]
    path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in corrected).encode(), mtime=0))


if __name__ == "__main__":
    {"measure": measure, "compare": compare, "apply": apply}[sys.argv[1]]()
