"""How fast a host starts operations, relative to the host of the table of the H200, which is the reference host.

The hosts of machines with the same GPU differ: seven machines needed between 0.70 and 1.19 times as long as the
reference host (benchmark host_times). So the host limits a step on one machine, and the GPU on another.
"""

from collections.abc import Iterator, Mapping
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
"""Number of operations from which the speed of a host is measured."""


def host_sample_path(card: str) -> Path:
    """Return the path of the small table from which the speed of this user's host is known."""
    return calibrated_table_path(card).parent / "hosts" / f"{card}.jsonl"


def host_sample_files() -> list[Path]:
    """Return the files that ``testbed calibrate --host`` has written."""
    return sorted(host_sample_path("").parent.glob("*.jsonl"))


def sample_keys(table: Table) -> list[str]:
    """Return SAMPLE keys of a table, evenly spread, of operations for which the GPU did not wait."""
    keys = sorted(key for key, times in table.measured.items() if not waited_for_host(parse(key), times))
    return keys[:: max(1, len(keys) // SAMPLE)]


def host_ratio(measured: Mapping[str, OperationTime], reference: Mapping[str, OperationTime]) -> float | None:
    """Return the median ratio of the host times of the operations that both have; None if they share none."""
    ratios = [times.host_s / reference[key].host_s for key, times in measured.items() if key in reference]
    return median(ratios) if ratios else None


def set_hosts(tables: Mapping[Path, Table]) -> None:
    """Set the factors of the host for each table, by its file.

    The host is the one that ``testbed calibrate --host`` has measured on a GPU with the table's chip, or the one of a
    table that ``testbed calibrate`` has written, or else the host of the package's table.
    """
    reference = (tables.get(REFERENCE_TABLE) or Table.read(REFERENCE_TABLE)).measured
    samples = [*map(Table.read, host_sample_files())]
    for path, table in tables.items():
        own_ratio = host_ratio(table.measured, reference) or 1.0
        ratio = next(_measured_ratios(table, samples, reference), None)
        is_measured = ratio is not None or path.parent != TABLES
        table.host = HostFactors((ratio or own_ratio) / own_ratio, ratio or own_ratio, is_measured)


def _measured_ratios(table: Table, samples: list[Table], reference: Mapping[str, OperationTime]) -> Iterator[float]:
    """Yield the ratios of the samples that were measured with the table's chip, the same card first."""
    same_chip = [one for one in samples if one.machine.card == table.machine.card]
    same_chip += [
        one for one in samples if one not in same_chip and have_same_chip(one.machine.card, table.machine.card)
    ]
    yield from filter(None, (host_ratio(one.measured, reference) for one in same_chip))
