"""How fast a host starts operations, relative to the host of the H200's table, which is the reference host.

The hosts of machines with the same GPU differ (benchmark host_times). So one machine's host limits a step that the GPU
limits on another machine.
"""

import copy
import functools
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from experiments.prediction.times.operations import parse
from experiments.prediction.times.table import (
    TABLES,
    HostFactors,
    OperationTime,
    Table,
    calibrated_table_path,
    waited_for_host,
)
from experiments.suites.cards import have_same_chip

REFERENCE_TABLE = TABLES / "h200_141gb.jsonl.gz"
SAMPLE = 400
"""About how many operations the measurement of a host runs."""


def host_sample_path(card: str) -> Path:
    """Return the path of the table with the operations that ``testbed calibrate --host`` measures on this card."""
    return calibrated_table_path(card).parent / "hosts" / f"{card}.jsonl"


def host_sample_files() -> list[Path]:
    """Return the files of this user's measured hosts."""
    return sorted(host_sample_path("").parent.glob("*.jsonl"))


def sample_keys(table: Table) -> list[str]:
    """Return about SAMPLE keys of a table, evenly spread over the operations for which the GPU did not wait."""
    keys = sorted(key for key, times in table.measured.items() if not waited_for_host(parse(key), times))
    return keys[:: max(1, len(keys) // SAMPLE)]


def host_ratio(measured: Mapping[str, OperationTime], reference: Mapping[str, OperationTime]) -> float | None:
    """Return the median ratio of the host times of the operations that both have; None if they share none."""
    ratios = [times.host_s / reference[key].host_s for key, times in measured.items() if key in reference]
    return median(ratios) if ratios else None


def set_own_hosts(tables: Mapping[Path, Table]) -> None:
    """Set the factors of each table, by its file, for predictions about a host like the table's own."""
    reference = (tables.get(REFERENCE_TABLE) or Table.read(REFERENCE_TABLE)).measured
    for path, table in tables.items():
        ratio = 1.0 if path == REFERENCE_TABLE else host_ratio(table.measured, reference)
        table.host = HostFactors(other=ratio or 1.0, is_measured=path.parent != TABLES)


@functools.cache
def with_measured_host(table: Table, card: str) -> Table:
    """Return the table for the host that this user has measured on the card, or on one with its chip.

    Without such a measurement, returns the table as it is.
    """
    ratios = _measured_ratios()
    ratio = next((ratios[name] for name in ratios if name == card), None)
    ratio = ratio or next((ratios[name] for name in ratios if have_same_chip(name, card)), None)
    if ratio is None:
        return table
    table.prepare()
    with_host = copy.copy(table)
    with_host.host = HostFactors(ratio / table.host.other, ratio, is_measured=True)
    return with_host


@functools.cache
def _measured_ratios() -> dict[str, float]:
    """Return the ratio of each host that this user has measured, by card."""
    samples = [*map(Table.read, host_sample_files())]
    if not samples:
        return {}
    reference = Table.read(REFERENCE_TABLE).measured
    ratios = {sample.machine.card: host_ratio(sample.measured, reference) for sample in samples}
    return {card: ratio for card, ratio in ratios.items() if ratio}
