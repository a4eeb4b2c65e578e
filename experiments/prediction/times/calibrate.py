"""Measure the times of operations on this machine's GPU, and write the table from which step times are predicted."""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import torch

from experiments.errors import InputError
from experiments.prediction.times.host import REFERENCE_TABLE, host_ratio, sample_keys
from experiments.prediction.times.operations import canonical_key, parse
from experiments.prediction.times.replay import NotReplayable, measure
from experiments.prediction.times.table import Machine, Table, read_lines
from experiments.results.wording import format_duration
from experiments.suites.cards import card_of_device
from experiments.system.files import write_atomically
from provision.hardware import local
from provision.temporary import TemporaryFolder
from provision.words import number_with_noun

PROGRESS_INTERVAL_S = 5.0


def this_machine(command: str) -> Machine:
    """Describe this machine and its first GPU. Raises InputError without a GPU, or if the catalog lacks the GPU."""
    if not torch.cuda.is_available():
        raise InputError("testbed calibrate measures a GPU, and this machine has none that PyTorch can use")
    name = torch.cuda.get_device_name()
    card = card_of_device(name, torch.cuda.get_device_properties(0).total_memory / 2**30)
    if card is None:
        raise InputError(f"{name}: not in the catalog of GPUs; `testbed cards` lists the allowed GPUs")
    return Machine(
        card=card,
        gpu=name,
        host=local.this_machine().description,
        torch=torch.__version__,
        command=command,
        date=datetime.now(UTC).date().isoformat(),
    )


def calibrate(keys: Iterable[str], out: Path, machine: Machine, print_line: Callable[[str], None]) -> None:
    """Measure the operations that the table ``out`` lacks, and append each as soon as it is measured.

    If the process dies during an operation, the next call records this and skips the operation. Raises InputError if
    the table was measured on another machine, or if an operation has broken the GPU for this process.
    """
    if out.exists() and not out.is_file():
        raise InputError(f"--out {out}: not a regular file")
    trying_file = out.with_suffix(".trying")
    known = set(map(canonical_key, _known_keys(out, machine)))
    with out.open("a") as file:
        if not known and not out.stat().st_size:
            file.write(machine.model_dump_json() + "\n")
        if trying_file.exists():
            file.write(json.dumps({"key": trying_file.read_text(), "problem": "the process died"}) + "\n")
            known.add(canonical_key(trying_file.read_text()))
        key_by_computation = {canonical_key(key): key for key in keys}
        missing = [key for computation, key in key_by_computation.items() if computation not in known]
        for key in _with_progress(missing, print_line):
            trying_file.write_text(key)
            try:
                file.write(json.dumps(_table_entry(key)) + "\n")
            finally:
                trying_file.unlink()
            file.flush()
            _require_working_gpu(key)


def measure_host(out: Path, machine: Machine, print_line: Callable[[str], None]) -> float:
    """Measure how fast the host of this machine starts operations, and write their times to ``out``.

    Returns the time of the host relative to the reference host. An earlier file stays until the measurement has ended.
    Raises InputError if too few operations could be measured, or if the file cannot be written.
    """
    with TemporaryFolder("host") as folder:
        measured = folder / "host.jsonl"
        calibrate(sample_keys(), measured, machine, print_line)
        ratio = host_ratio(Table.read(measured).measured, Table.read(REFERENCE_TABLE).measured)
        if ratio is None:
            raise InputError("too few operations could be measured on this GPU, so the speed of the host is unknown")
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(out, measured.read_text())
        except OSError as error:
            raise InputError(f"{out}: cannot be written: {error.strerror}") from None
    return ratio


def _known_keys(table: Path, machine: Machine) -> Iterator[str]:
    if not table.exists() or not (lines := read_lines(table)):
        return
    if not table.read_text().endswith("\n"):
        write_atomically(table, "".join(json.dumps(line) + "\n" for line in lines))
    if (other := Machine.model_validate(lines[0])).gpu != machine.gpu or other.torch != machine.torch:
        raise InputError(f"{table}: measured on {other.gpu} with PyTorch {other.torch}; give another --out")
    yield from (line["key"] for line in lines[1:])


def _with_progress(keys: list[str], print_line: Callable[[str], None]) -> Iterator[str]:
    started_s = printed_s = time.monotonic()
    for number, key in enumerate(keys):
        if number and time.monotonic() - printed_s > PROGRESS_INTERVAL_S:
            printed_s = time.monotonic()
            left = format_duration((printed_s - started_s) / number * (len(keys) - number))
            print_line(f"measured {number} of {len(keys)} operations, about {left} left")
        yield key
    print_line(f"measured {number_with_noun(len(keys), 'operation')}")


def _require_working_gpu(key: str) -> None:
    """Release cached memory. Raises InputError if the GPU rejects this, because an operation has failed."""
    try:
        torch.cuda.empty_cache()
    except RuntimeError:
        name = parse(key).name
        raise InputError(
            f"the operation {name} failed, and the GPU now rejects all other work of this process; the times measured"
            f" so far are saved; to measure the operations that follow {name}, run the command again"
        ) from None


def _table_entry(key: str) -> dict[str, object]:
    try:
        times = measure(parse(key))
    except (NotReplayable, torch.OutOfMemoryError) as problem:
        return {"key": key, "problem": str(problem).splitlines()[0][:200]}
    return {"key": key, "device_s": float(f"{times.device_s:.4g}"), "host_s": float(f"{times.host_s:.4g}")}
