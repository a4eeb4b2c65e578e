"""How fast a host starts operations, relative to the host of the H200's table, which is the reference host.

The hosts of machines with the same GPU differ (benchmark host_times). So one machine's host limits a step that the GPU
limits on another machine.
"""

import copy
import functools
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from experiments.prediction.times.operations import Family, canonical_key, parse
from experiments.prediction.times.table import (
    TABLES,
    HostFactors,
    OperationTime,
    Table,
    calibrated_table_path,
    table_files,
    waited_for_host,
)
from experiments.suites.cards import cards, have_same_chip

REFERENCE_TABLE = TABLES / "h200_141gb.jsonl.gz"
SAMPLE, MIN_SHARED = 400, 50
"""About how many operations the measurement of a host runs, and how many of them a comparison of two hosts needs."""
SAMPLED_FAMILIES: tuple[Family, ...] = ("matrix products", "element-wise", "reductions", "copies")
"""Families whose operations run with any values. Indices, for example, must be valid."""
MAX_RATIO = 100.0
"""Largest ratio of two hosts that is credible."""


def host_sample_path(card: str) -> Path:
    """Return the path of the table with the operations that ``testbed calibrate --host`` measures on this card."""
    return calibrated_table_path(card).parent / "hosts" / f"{card}.jsonl"


def time_files() -> list[Path]:
    """Return all files that predicted times depend on: the tables, and this user's measured hosts."""
    return [*table_files(), *(path for card in sorted(cards()) if (path := host_sample_path(card)).is_file())]


def time_file_hashes() -> list[str]:
    """Return the SHA-256 of each file of ``time_files``, with its name. A calibration changes the files."""
    return [f"{path.parent.name}/{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in time_files()]


def sample_keys() -> list[str]:
    """Return the keys of about SAMPLE operations, evenly spread over those that all tables of the package have."""
    first, *others = (Table.read(path).measured for path in sorted(TABLES.glob("*.jsonl.gz")))
    shared = {canonical_key(key) for key in first}.intersection(*({*map(canonical_key, one)} for one in others))
    keys = sorted(key for key, times in first.items() if canonical_key(key) in shared and _is_sampled(key, times))
    return keys[:: max(1, len(keys) // SAMPLE)]


def _is_sampled(key: str, times: OperationTime) -> bool:
    operation = parse(key)
    has_lists = any("tensors" in one for one in operation.tensors)
    return operation.family in SAMPLED_FAMILIES and not has_lists and not waited_for_host(operation, times)


def host_ratio(measured: Mapping[str, OperationTime], other: Mapping[str, OperationTime]) -> float | None:
    """Return the median ratio of the host times of the operations that both have; None if they share too few."""
    others = {canonical_key(key): times.host_s for key, times in other.items()}
    shared = ((times.host_s, others.get(canonical_key(key), 0.0)) for key, times in measured.items())
    ratios = [host_s / other_s for host_s, other_s in shared if other_s > 0]
    return median(ratios) if len(ratios) >= MIN_SHARED else None


def set_own_hosts(tables: Mapping[Path, Table]) -> None:
    """Set the factors of each table, by its file, for predictions about a host like the table's own."""
    reference = (tables.get(REFERENCE_TABLE) or Table.read(REFERENCE_TABLE)).measured
    for path, table in tables.items():
        ratio = 1.0 if path == REFERENCE_TABLE else host_ratio(table.measured, reference)
        table.host = HostFactors(other=ratio or 1.0)
        table.is_own = path.parent != TABLES


@functools.cache
def with_measured_host(table: Table, card: str) -> Table:
    """Return the table for the host that this user has measured on the card, or on one with its chip.

    Without a usable measurement, returns the table as it is.
    """
    names = [card, *(name for name in cards() if have_same_chip(name, card))]
    ratio = next(filter(None, (_measured_ratio(host_sample_path(name), table) for name in names)), None)
    if ratio is None:
        return table
    table.prepare()
    with_host = copy.copy(table)
    with_host.host = HostFactors(ratio, ratio * table.host.other, is_measured=True)
    return with_host


def _measured_ratio(path: Path, table: Table) -> float | None:
    """Return the time of a measured host relative to the table's host; None without a usable file. Warns of others."""
    if not path.exists():
        return None
    try:
        ratio = host_ratio(Table.read(path).measured, table.measured)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        _warn(path, f"{type(error).__name__}: {error}")
        return None
    if ratio is None or not 1 / MAX_RATIO < ratio < MAX_RATIO:
        _warn(path, f"fewer than {MIN_SHARED} usable times" if ratio is None else f"{ratio:g} times the usual time")
        return None
    return ratio


def _warn(path: Path, reason: str) -> None:
    short = " ".join(reason.split())[:200]
    print(
        f"{path}: ignored, because it is not the measurement of a host ({short}); run `testbed calibrate --host` again",
        file=sys.stderr,
    )
